"""`vidtrain`, for torchrun: `torchrun --nproc-per-node 2 -m vidcache.train cache.h5`."""

from vidcache.train.cli import main

main(prog_name="vidtrain")
