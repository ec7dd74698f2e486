"""What the benchmark `scenes-hard` tells apart: accuracy by stage, strategy, layer and decoding step.

    python -m benchmarks.depth --out build/depth --processes 2      # every cell that is not there yet, then the summary
    python -m benchmarks.depth --out build/depth --summary benchmarks/results/scenes-hard.json

A cell is one pipeline on one set of questions; its answers lie in a file of their own, so that an interrupted run goes on,
and several processes share the work.
"""
