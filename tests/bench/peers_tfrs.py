# SPDX-License-Identifier: Apache-2.0
"""The plain two-tower model in TensorFlow Recommenders, as peers.py compares it; see peers_stream.py."""
import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
import tensorflow_recommenders as tfrs  # noqa: E402
import tf_keras  # noqa: E402

import peers_stream as peers  # noqa: E402

tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)


class Learner:
    compiled = False

    def __init__(self, n_users, n_items, mask, seed):
        tf.random.set_seed(seed)

        def table(rows, width, reach):
            return tf.Variable(tf.random.uniform([rows, width], -reach, reach))

        self.weights = [table(n_users, peers.DIM, peers.INIT), table(n_items, peers.DIM, peers.INIT),
                        table(n_items, 1, 0.0)]
        # The default loss: softmax cross-entropy, summed over the batch.
        task = tfrs.tasks.Retrieval(remove_accidental_hits=mask)
        optimizer = self.optimizer_make()

        @tf.function(jit_compile=self.compiled, input_signature=[
            tf.TensorSpec([None], tf.int64), tf.TensorSpec([None], tf.int64),
            tf.TensorSpec([None], tf.float32)])
        def step(users, items, log_q):
            user, item, bias = self.weights
            with tf.GradientTape() as tape:
                queries, candidates = tf.gather(user, users), tf.gather(item, items)
                # The task has no place for a bias: one dimension more, in which a query is 1.
                queries = tf.concat([queries, tf.ones_like(queries[:, :1])], axis=1)
                candidates = tf.concat([candidates, tf.gather(bias, items)], axis=1)
                loss = task(queries, candidates, candidate_ids=items,
                            candidate_sampling_probability=tf.exp(log_q), compute_metrics=False)
            optimizer.apply_gradients(zip(tape.gradient(loss, self.weights), self.weights))
            return loss

        self.optimizer, self.step = optimizer, step

    @staticmethod
    def optimizer_make():
        return tf_keras.optimizers.legacy.Adagrad(
            peers.RATE, initial_accumulator_value=peers.ACCUMULATOR)

    def learn(self, users, items, log_q):
        self.step(tf.constant(users), tf.constant(items), tf.constant(log_q))

    def warm_up(self, users, items):
        """What happens once in a process must not be on the clock; leaves the parameters alone."""
        self.step.get_concrete_function()
        variables = self.weights + list(self.optimizer.variables())
        before = [variable.numpy() for variable in variables]
        for n in (len(users), len(users) - len(users) // 3):
            self.learn(users[:n], items[:n], np.zeros(n, dtype=np.float32))
        for variable, old in zip(variables, before):
            variable.assign(old)

    def scores(self, users):
        user, item, bias = self.weights
        queries = tf.gather(user, tf.constant(users))
        return (tf.matmul(queries, item, transpose_b=True) + tf.transpose(bias)).numpy()


class Newer(Learner):
    @staticmethod
    def optimizer_make():
        return tf_keras.optimizers.Adagrad(
            peers.RATE, initial_accumulator_value=peers.ACCUMULATOR)


if __name__ == "__main__":
    peers.main(f"TensorFlow {tf.__version__} with Recommenders {tfrs.__version__}",
               {"legacy": Learner, "newer": Newer})
