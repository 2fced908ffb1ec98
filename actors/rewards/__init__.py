"""Reward models: trained on Ray Train, served on Ray Serve (FGAIF section 3.3).

    feedback/ --> worker 0..n-1 (Ray Train, one backbone) --> rewards/<type>/ --> scorers (Serve deployments)
                    rank 0: checkpoint after each epoch                               ^          |
                                                                    batch of segments |          v probabilities
    HTTP client --> proxy --> RewardGateway (limits, admission, composition) ---------+--> rewards per segment, token
    learner ------> handle -->   |     ^
                           items v     | segments, pixels
                               Preparers (processes that can be killed)

* driver (``trainer.train_reward_models``)
    consumes:     progress messages of a queue
    waits for:    the next message, ``POLL_SECONDS`` at most
    unblocked by: rank 0; the end of ``TorchTrainer.fit``
* training worker
    consumes:     its share of each batch
    waits for:    the other workers' gradients
    unblocked by: ``LearnerGroup.sum_all`` of all ranks
* ``RewardGateway``
    consumes:     requests, as long as their last item would wait no longer than ``max_wait_s``, and at most
                  ``max_waiting_items`` wait
    waits for:    a preparer for each item; every scorer's answer to each list of a request, a few at a time
    unblocked by: the preparer, or its end; the slowest scorer, or ``request_timeout_s``
* ``Preparers``
    consumes:     items of all requests in turn, one for each process
    waits for:    nothing
    unblocked by: the kernel's timer, at an item's budget of processor time
* ``RewardScorer`` (``@serve.batch``)
    consumes:     lists of several callers, ``max_batch_size`` items
    waits for:    a full batch or ``batch_wait_timeout_s``
    unblocked by: the next caller, or the time-out
* client inside the cluster (``alignment/rewarder.py``)
    consumes:     nothing
    waits for:    the gateway's answer
    unblocked by: the gateway; a lost replica is asked again

Back-pressure: beyond these limits the gateway answers 429 with ``Retry-After`` at once. A batch whose replica
dies is sent again, ``MAX_REPLICAS_TRIED`` times at most. Training resumes at its last epoch's checkpoint.
"""
