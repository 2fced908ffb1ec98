"""A run's results as repositories of the Hugging Face Hub: the aligned adapter, the reward models, the feedback.

    policy/   -> NAME           (model)    card with what alignment changed
    rewards/  -> NAME-rewards   (model)    a folder for each fact type, card with held-out metrics
    feedback/ -> NAME-feedback  (dataset)  Parquet with two splits, card with counts and a warning about personal data

Each is first a folder, which is complete before anything is uploaded.
"""
