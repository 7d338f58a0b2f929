"""Weather: impairments of what crosses a link, as rules that can be replayed.

Theory of operation: a rule is a match and effects (`rule`), which text and keywords state alike (`grammar`). An
`engine.Engine` holds the rules of one direction of one link. It is offered runs of frames (`facts`) and answers with
actions (`action`): the parts of a run that leave now, and what is done to them. Parts that leave later are held until
the caller asks for what is due.

The fate of a frame depends on the seed, the rule and the frame's number among those that the rule matches, and on
nothing else (`chance`): neither on time nor on other rules, on how many frames are offered at once, or on the version
of Python. What a queue of bounded rate drops depends on time, as it does in a router.
"""
