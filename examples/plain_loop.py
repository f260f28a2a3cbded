"""One sample at a time in a plain loop: a stream, a network, MetaOptimize and a CSV file; no Avalanche, no engine."""

import csv
import sys
from pathlib import Path

import torch

from continual_metaopt import MLP, MetaOptimize, blocks
from continual_metaopt.streams import plan_stream

path = Path(sys.argv[1] if len(sys.argv) > 1 else "plain_loop.csv")
stream = plan_stream("permuted_inputs", source="digits", n_experiences=3, samples_per_experience=500, seed=0)
sizes = stream.info.for_learner
torch.manual_seed(0)
model = MLP(sizes.n_outputs, sizes.input_shape)
optimizer = MetaOptimize(blocks(model, "blockwise"), lr=1e-3, gamma="auto", trace="dutch")
loss_of = torch.nn.CrossEntropyLoss()

step = n_correct = 0
with path.open("w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(["step", "experience", "online_accuracy", *optimizer.step_size_report()])
    for experience, samples in enumerate(stream.train):
        for number in range(len(samples)):
            x, y = map(torch.from_numpy, samples.batch(slice(number, number + 1)))
            output = model(x)
            n_correct += int(output.argmax() == y)  # predicted before it is learned from
            optimizer.zero_grad()
            loss_of(output, y).backward()
            optimizer.step()
            step += 1
            if step % 100 == 0:
                rows.writerow([step, experience, n_correct / step, *optimizer.step_size_report().values()])
print(f"online accuracy {n_correct / step:.1%} of {step} samples; its course, and the step sizes, are in {path}")
