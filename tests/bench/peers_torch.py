# SPDX-License-Identifier: Apache-2.0
"""The plain two-tower model in PyTorch, as peers.py compares it; see peers_stream.py."""
import numpy as np
import torch
import torch.nn.functional as F

import peers_stream as peers

torch.set_num_threads(1)
torch.set_num_interop_threads(1)


def twice_there(items):
    """Where a B x B matrix has the column of another example's equal item, flat: int64[pairs].

    By sorting: comparing all with all and filling by that took half of a step's time.
    """
    n = len(items)
    order = np.argsort(items, kind="stable")
    _, first, group, count = np.unique(items[order], return_index=True, return_inverse=True,
                                       return_counts=True)
    begin, size = first[group], count[group]
    end = np.cumsum(size)
    within = np.arange(end[-1]) - np.repeat(end - size, size)
    rows = np.repeat(order, size)
    columns = order[np.repeat(begin, size) + within]
    return (rows * n + columns)[rows != columns]


class Learner:
    sparse = False
    compiled = False

    def __init__(self, n_users, n_items, mask, seed):
        torch.manual_seed(seed)
        self.user = torch.nn.Embedding(n_users, peers.DIM, sparse=self.sparse)
        self.item = torch.nn.Embedding(n_items, peers.DIM, sparse=self.sparse)
        self.bias = torch.nn.Embedding(n_items, 1, sparse=self.sparse)
        torch.nn.init.uniform_(self.user.weight, -peers.INIT, peers.INIT)
        torch.nn.init.uniform_(self.item.weight, -peers.INIT, peers.INIT)
        torch.nn.init.zeros_(self.bias.weight)
        self.weights = [self.user.weight, self.item.weight, self.bias.weight]
        self.mask = mask
        self.loss = torch.compile(self._loss, dynamic=True) if self.compiled else self._loss
        self._optimizer_make()

    def _optimizer_make(self):
        # Of all tables at once where they are dense: one kernel instead of five for each.
        self.optimizer = torch.optim.Adagrad(self.weights, lr=peers.RATE,
                                             initial_accumulator_value=peers.ACCUMULATOR,
                                             fused=not self.sparse)

    def _loss(self, users, items, log_q, hidden):
        queries, candidates = self.user(users), self.item(items)
        logits = torch.addmm(self.bias(items).T - log_q, queries, candidates.T)
        if self.mask:
            logits.view(-1).index_fill_(0, hidden, float("-inf"))
        return F.cross_entropy(logits, torch.arange(len(items)), reduction="sum")

    def learn(self, users, items, log_q):
        self.optimizer.zero_grad(set_to_none=True)
        hidden = torch.from_numpy(twice_there(items)) if self.mask else None
        self.loss(torch.from_numpy(users), torch.from_numpy(items), torch.from_numpy(log_q),
                  hidden).backward()
        self.optimizer.step()

    def warm_up(self, users, items):
        """What happens once in a process must not be on the clock; leaves the parameters alone."""
        before = [weight.detach().clone() for weight in self.weights]
        # Two sizes: a compiler that saw one would compile again at the first chunk's end.
        for n in (len(users), len(users) - len(users) // 3):
            self.learn(users[:n], items[:n], np.zeros(n, dtype=np.float32))
        with torch.no_grad():
            for weight, old in zip(self.weights, before):
                weight.copy_(old)
        self._optimizer_make()

    @torch.inference_mode()
    def scores(self, users):
        queries = self.user.weight[torch.from_numpy(users)]
        return torch.addmm(self.bias.weight.T, queries, self.item.weight.T).numpy()


class Sparse(Learner):
    sparse = True


class Compiled(Learner):
    compiled = True


if __name__ == "__main__":
    peers.main(f"PyTorch {torch.__version__}",
               {"dense": Learner, "sparse": Sparse, "compiled": Compiled})
