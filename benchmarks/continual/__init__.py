"""Continual calibration beside its peers: the same streams, the same bytes of core set, at 2, 4 and 8 bits.

__main__  runs methods on protocols; results are benchmarks/results/continual_PROTOCOL.json and .png
choose    the peers' settings, chosen on a person that nothing is reported of
cost      time and peak memory of a step of each method, each in a process of its own
bars      what the calibrator was to show, and whether it does

methods   every method by its name
ours      the calibrator, its rungs and its ablations
forward   peers that need forward passes of the integer model alone: bias correction, zeroth order
squant    SQuant's flips
backprop  replay and LSQ in torch; memory: what replay keeps

stream    a protocol taken through a method; start: what methods start from
noisy     protocols of noise and corruptions; sources: trained sources, kept in files
plot      accuracy over the stream
"""
