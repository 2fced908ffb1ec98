"""The guard: answers about images are judged by reward models before a person sees them.

It stands as an OpenAI-compatible proxy before any endpoint; here is what it does, without HTTP and without Ray.

    chat request --> chat: images, last question        upstream's answers --> judgement: verdicts by segment
                                                                   annotate:  the verdicts beside the answer
                                                                   best-of-n: choosing: the best of some samples
                                                                   strip:     stripping: what is false is cut
    streams:     sse: events     buffer: segments as they end
"""
