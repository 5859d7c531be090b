"""Facts <subject, predicate, object>: images and structured facts in one space, learned task by task.

Source: Elhoseiny et al., Sherlock, AAAI 2017; as the hardest test of Aljundi et al., Memory Aware Synapses, ECCV 2018.
"""
