"""Reward models: trained on Ray Train, served on Ray Serve (FGAIF section 3.3).

    feedback/ --> worker 0..n-1 (Ray Train, one backbone) --> rewards/<type>/ --> scorers (Serve deployments)
                    rank 0: checkpoint after each epoch                               ^          |
                                                                    batch of segments |          v probabilities
    HTTP client --> proxy --> RewardGateway (segments, limits, composition) ----------+--> rewards per segment, token
    learner ------> handle -->

* driver (``trainer.train_reward_models``)
    consumes:     progress messages of a queue
    waits for:    the next message, ``POLL_SECONDS`` at most
    unblocked by: rank 0; the end of ``TorchTrainer.fit``
* training worker
    consumes:     its share of each batch
    waits for:    the other workers' gradients
    unblocked by: ``LearnerGroup.sum_all`` of all ranks
* ``RewardGateway``
    consumes:     requests, up to ``max_waiting_items`` waiting
    waits for:    one thread for segments and tokens; every scorer's answer to the batch
    unblocked by: the thread; the slowest scorer, or ``request_timeout_s``
* ``RewardScorer`` (``@serve.batch``)
    consumes:     lists of several callers, ``max_batch_size`` items
    waits for:    a full batch or ``batch_wait_timeout_s``
    unblocked by: the next caller, or the time-out
* client inside the cluster (``alignment/rewarder.py``)
    consumes:     nothing
    waits for:    the gateway's answer
    unblocked by: the gateway; a lost replica is asked again

Back-pressure: beyond ``max_waiting_items`` the gateway answers 429 with ``Retry-After`` at once. A batch whose replica
dies is sent again, ``MAX_REPLICAS_TRIED`` times at most. Training resumes at its last epoch's checkpoint.
"""
