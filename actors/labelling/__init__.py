"""Labelling: responses become feedback, on Ray Data (FGAIF sections 3.1 and 3.2).

    responses/ --> ids of blocks --> FactExtraction x n --> Verifier x m --> parts of feedback/ --> SecondVerifier
       (parts)      (plan.py)          |         ^            (vLLM)           + rejected rows        (vLLM, a pass
                                 ask   v         | permits                                             of its own)
                                  CallCoordinator (one actor) --> limits, budget, known answers
                                       ^
                                       | complete
                              extraction-cache/, ledger (files of each worker)

* driver (``plan.label_responses``)
    consumes:     counts of finished blocks
    waits for:    the next finished block
    unblocked by: a verifier that has written its part
* ``FactExtraction``, one event loop with several open blocks
    consumes:     ids of blocks; it reads the rows itself
    waits for:    a permit of the coordinator; the endpoint's answer; an answer that another worker is asking for
    unblocked by: the coordinator's rate limiter; the endpoint or ``timeout_s``; the other worker's ``complete``
* ``CallClient`` (in each extraction worker)
    consumes:     what the extractor asks, in batches
    waits for:    the coordinator's answer to the batch before
    unblocked by: the coordinator, or its restart, after which workers say what they have under way
* ``CallCoordinator.listen``
    consumes:     nothing
    waits for:    news: a pause, a stop
    unblocked by: the endpoint's ``Retry-After``, a spent budget, or ``LISTEN_S``
* ``Verifier``
    consumes:     tables of facts, a block each
    waits for:    its engine's batch of questions
    unblocked by: vLLM
* ``SecondVerifier``
    consumes:     ids of labelled parts
    waits for:    its engine's batch
    unblocked by: vLLM

Back-pressure: an extraction worker has at most ``OPEN_BLOCKS`` blocks open, Ray Data stops handing out ids when
verifiers fall behind, and the driver holds counts alone, no rows. A block is done when its part is published: a worker
or the job may die at any time, and what is pending is found from the parts that are there (``feedback/pending.py``).
A call that was answered is kept before its block goes on, so it is never paid twice.
"""
