"""Statistics that a walk gathers on its way: each looks at every block of cosines once, in few passes.

Note [Passes of the statistics]
The product of one pair in 768 dimensions takes 8 ns of a core, a pass over a block that is in its cache 0.1 ns, the
first one over a block that is not 0.5 ns, and `torch.histc` 5 ns. So what the statistics can waste are slow passes,
blocks of their own, and calls on small ones. They look at whole pieces, each of which is many of the small panels; all
write to one block of memory, "observed", one after the other; the extremes come from the row maxima and are known to
all that follow, the search for close pairs included, which is left out where they say that there are none. Rejected:
smaller pieces, of which everything stays in the second-level cache, but whose calls take as long as they save.
"""
