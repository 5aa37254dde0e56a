# SPDX-License-Identifier: Apache-2.0
"""The models of gauravchak/two_tower_models in PyTorch, written anew, as seed_models.py compares them.

    base      user and item: an id row, features through Linear, ReLU, Linear, and a linear layer over
              both; softmax over the batch, an example counting by its share of the batch's largest value
    history   rows of the items in the user's history, through three layers of attention with four
              heads, nothing between them; the newest event's state and the mean of the rows enter the
              user's linear layer

Variants, each one process_time() clock around whole steps:

    seed      as it is there: Adam over all parameters, tables included; the library's attention with
              the probabilities that it returns by default
    fused     the same steps, one kernel for the whole of Adam; attention by the library's fused
              product, the last layer for the newest event only
    sparse    the same with sparse gradients of the tables, SparseAdam for these: only rows that occur
              move, as in twotower. No longer the same learning.
"""
import argparse
import json
import time

import torch
import torch.nn.functional as F

torch.set_num_threads(1)
torch.set_num_interop_threads(1)

DIM, FEATURES, HIDDEN, HEADS, LAYERS, RATE = 64, 8, 256, 4, 3, 1e-3


def positions(length):
    p = torch.arange(length).flip(0)[:, None]
    c = torch.arange(DIM)[None, :]
    angle = p / 10000 ** (2 * c / DIM)
    return torch.where(c % 2 == 0, angle.sin(), angle.cos())


class Encoder(torch.nn.Module):
    def __init__(self, length, tuned):
        super().__init__()
        self.tuned = tuned
        self.positions = positions(length)
        self.layers = torch.nn.ModuleList(
            torch.nn.MultiheadAttention(DIM, HEADS, batch_first=True) for _ in range(LAYERS))

    def forward(self, rows):
        state = rows + self.positions
        for i, layer in enumerate(self.layers):
            query = state[:, :1] if self.tuned and i == LAYERS - 1 else state
            state, _ = layer(query, state, state, need_weights=not self.tuned)
        return torch.cat([state[:, 0], rows.mean(dim=1)], dim=1)


class Model(torch.nn.Module):
    def __init__(self, users, items, length, sparse, tuned):
        super().__init__()
        self.user = torch.nn.Embedding(users, DIM, sparse=sparse)
        self.item = torch.nn.Embedding(items, DIM, sparse=sparse)
        self.user_features, self.item_features = (
            torch.nn.Sequential(torch.nn.Linear(FEATURES, HIDDEN), torch.nn.ReLU(),
                                torch.nn.Linear(HIDDEN, DIM)) for _ in range(2))
        self.encoder = Encoder(length, tuned) if length else None
        self.user_tower = torch.nn.Linear((4 if length else 2) * DIM, DIM)
        self.item_tower = torch.nn.Linear(2 * DIM, DIM)

    def forward(self, user, user_features, item, item_features, history, value):
        parts = [self.user(user), self.user_features(user_features)]
        if self.encoder:
            parts.append(self.encoder(self.item(history)))
        queries = self.user_tower(torch.cat(parts, dim=1))
        candidates = self.item_tower(
            torch.cat([self.item(item), self.item_features(item_features)], dim=1))
        loss = F.cross_entropy(queries @ candidates.T, torch.arange(len(user)), reduction="none")
        weight = value.clamp(min=1e-6)
        return (loss * (weight / weight.max())).mean()


def optimizers(model, variant):
    if variant == "seed":
        return [torch.optim.Adam(model.parameters(), lr=RATE)]
    tables = [model.user.weight, model.item.weight] if variant == "sparse" else []
    dense = [p for p in model.parameters() if not any(p is t for t in tables)]
    made = [torch.optim.Adam(dense, lr=RATE, fused=True)]
    return made + ([torch.optim.SparseAdam(tables, lr=RATE)] if tables else [])


def measure(asked, variant):
    torch.manual_seed(1)
    model = Model(asked.users, asked.items, asked.length, variant == "sparse", variant != "seed")
    made = optimizers(model, variant)
    batch, steps, took = asked.batch, -2, 0.0
    while steps < 3 or took < asked.seconds:
        user = torch.randint(asked.users, (batch,))
        item = torch.randint(asked.items, (batch,))
        history = torch.randint(asked.items, (batch, asked.length)) if asked.length else None
        user_features, item_features = torch.rand(2, batch, FEATURES)
        value = torch.ones(batch)
        began = time.process_time()
        loss = model(user, user_features, item, item_features, history, value)
        for optimizer in made:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in made:
            optimizer.step()
        steps += 1
        if steps > 0:  # the first two make the optimizer's memory
            took += time.process_time() - began
    return steps * batch / took


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--users", type=int, required=True)
    parser.add_argument("--items", type=int, required=True)
    parser.add_argument("--length", type=int, required=True, help="of the history; 0: the base")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=1.5)
    asked = parser.parse_args()
    rates = {variant: measure(asked, variant) for variant in ("seed", "fused", "sparse")}
    print(json.dumps({"version": f"PyTorch {torch.__version__}", "examples_per_second": rates}))


if __name__ == "__main__":
    main()
