"""The guard: an OpenAI-compatible proxy that judges answers about images with the reward service.

    client --> proxy --> ChatGuard (limits, admission) --> Upstream: the endpoint, with its own key
                            |      ^                          |
                            |      +------- answers ----------+
                            +--> AnswerJudge --> reward service --> verdicts --> annotate | best-of-n | strip

* ``ChatGuard`` (a Serve deployment that autoscales by requests in flight)
    consumes:     requests, as long as their last answer would wait no longer than ``guard.max_wait_s``, and at most
                  ``guard.max_waiting_answers`` wait
    waits for:    the endpoint's answer, then for its verdicts
    unblocked by: both, or ``guard.request_timeout_s``
* a stream
    consumes:     pieces as the endpoint sends them, into a queue of bounded length
    waits for:    the verdicts on the segments that have ended; what comes meanwhile is judged together
    unblocked by: the reward service; a client that goes away ends both

Back-pressure: beyond these limits the guard answers 429 with ``Retry-After`` at once.
"""
