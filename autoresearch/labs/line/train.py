"""The hypothesis. Mutable: one weight, one bias, gradient descent with momentum."""

import json
import random

import prepare

LEARNING_RATE = 0.01  # 0.0001 .. 1, log
MOMENTUM = 0.5  # 0 .. 0.99
WARMDOWN = 0.2  # 0 .. 1, share of the budget over which the rate falls to zero
WEIGHT_INIT = 0.0  # -1 .. 1
WEIGHT_DECAY = 0.0001  # 0 .. 0.1
BATCH = 4  # 1 .. 32


class Line:
    """y = weight * x + bias."""

    def __init__(self):
        self.weight, self.bias = WEIGHT_INIT, 0.0

    def __call__(self, inputs):
        return [self.weight * x + self.bias for x in inputs]

    def state_dict(self):
        return {"weight": [self.weight], "bias": [self.bias]}

    def load_state_dict(self, state):
        (self.weight,), (self.bias,) = state["weight"], state["bias"]


def build_model():
    return Line()


run = prepare.begin(build_model)
model = build_model()
points = json.loads(bytes(run.data))  # the clock starts here
speed_w = speed_b = 0.0
while run.progress < 1:
    batch = random.choices(points, k=BATCH)
    errors = [model.weight * x + model.bias - y for x, y in batch]
    grad_w = sum(e * x for e, (x, _) in zip(errors, batch)) / BATCH
    grad_b = sum(errors) / BATCH
    rate = LEARNING_RATE * min(1.0, (1 - run.progress) / max(WARMDOWN, 1e-9))
    speed_w = MOMENTUM * speed_w + grad_w + WEIGHT_DECAY * model.weight
    speed_b = MOMENTUM * speed_b + grad_b
    model.weight -= rate * speed_w
    model.bias -= rate * speed_b
    run.report(sum(e * e for e in errors) / BATCH)
    run.spent(BATCH)  # a "token" of this lab is one point
run.submit(model, batch=BATCH)
