"""Alignment: PPO on dense rewards, on Ray Train, with vLLM rollouts (FGAIF section 4).

    PromptPlan --> ExperienceSource ---ids, images---> RolloutWorker x k (vLLM) ---sampled ids, log-probs---+
    (drawn per step)     ^   |                              ^ PolicyVersion (adapter folder)                |
                         |   +------- responses ------> Rewarder --> reward service --> probabilities ------+
                         |                                                                                  v
                         +<-- next step -- Learner 0..n-1: collate -> advantages -> epochs of updates <-- Sampled
                                              rank 0: new PolicyVersion, checkpoint, log

* learner step, on every rank (``learner.py``)
    consumes:     ``Sampled`` responses of its share of the batch
    waits for:    rollouts (with ``max_staleness: 0``), then rewards
    unblocked by: its ``ExperienceSource``
* update
    consumes:     micro-batches of the step
    waits for:    the other ranks' sums of gradients and statistics
    unblocked by: ``LearnerGroup`` of all ranks
* ``ExperienceSource`` (threads of each learner worker)
    consumes:     draws of the plan
    waits for:    a rollout worker; the ``Rewarder``
    unblocked by: vLLM; the reward service
* ``RolloutWorker`` (``SharedEngine``)
    consumes:     requests of several learner workers
    waits for:    the requested policy version to be loaded, which waits until nothing of another version is under way
    unblocked by: the caller whose turn it is drives the engine for all
* ``Rewarder``
    consumes:     responses
    waits for:    the gateway's answer, up to ``PATIENCE_S`` where it answers nothing
    unblocked by: the reward service
* rank 0's publication
    consumes:     the updated adapter
    waits for:    the other ranks at ``LearnerGroup.barrier``
    unblocked by: the last rank to arrive

With ``max_staleness: 1`` the source is one batch ahead: it samples step s + 1 from policy s while the learner learns
from step s. Engines are asked for a version by folder, so a restarted worker loads it before it samples. A reward that
is unavailable is masked or ends the run (``align.reward.failure``); it never counts as zero. A worker, a replica or a
node may die at any time: the run goes on from the last checkpoint.
"""
