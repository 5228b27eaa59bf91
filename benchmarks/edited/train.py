"""The hypothesis: a small GPT, its optimisers and its five minutes. Mutable.

One file, straight down: constants, model, optimisers, schedule, loop. Change anything,
as long as `build_model()` gives a model whose logits at t depend only on the weights and
on tokens up to t of the same row. The seed, the clock and the score are the harness's.
"""

import gc
import math
import os
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin ran 8x slower beside a busy neighbour

import prepare
import torch
import torch.nn as nn
import torch.nn.functional as F

# -----------------------------------------------------------------------------
# constants: every number worth turning. A comment may state a range

# model: one dial, the rest follows
DEPTH = 4  # 2 .. 16; layers
ASPECT = 32  # 16 .. 96; width = DEPTH * ASPECT, rounded up to whole heads
HEAD_SIZE = 64  # fixed; the optimiser leaves it alone, you need not
MLP_RATIO = 4  # 2 .. 6; hidden size of the MLP in widths
WINDOW_PATTERN = "SSSL"  # one of: "L", "SL", "SSL", "SSSL", "SSSSL"; short or long, repeated over layers, the last is long
SHORT_WINDOW = 4  # 2 .. 16; a short layer sees context / this many tokens
ROPE_BASE = 10000.0  # 1000 .. 1000000, log; rotary wavelengths
SOFTCAP = 15.0  # 5 .. 50, log; logits are squashed into +- this
QK_SCALE = 1.15  # 0.5 .. 2; sharpens attention after QK-norm
INIT_SCALE = 0.7  # 0.2 .. 1.5; of all matrices, in 1 / sqrt(fan in)
EMBEDDING_INIT = 0.8  # 0.1 .. 2; std of token embeddings
HEAD_INIT = 0.001  # 0.0001 .. 0.05, log; std of the unembedding
X0_INIT = 0.05  # 0 .. 0.5; how much of the embedding is added back in every layer
RESIDUAL_INIT = 1.05  # 0.8 .. 1.2; first layer's factor on the residual, falling to 1 at the last
GATE_CHANNELS = 32  # 4 .. 64; channels that open the gates of the value embeddings

# batch
DEVICE_BATCH = 2**11  # 2**10 .. 2**19; tokens in one forward pass
TOTAL_BATCH = 2**11  # 2**10 .. 2**20; tokens in one step

# Muon: the matrices of attention and MLP
MATRIX_LR = 0.04  # 0.003 .. 0.3, log
MOMENTUM = 0.95  # 0.8 .. 0.99
MOMENTUM_START = 0.85  # 0.5 .. 0.95; rises to MOMENTUM
MOMENTUM_RAMP = 0.15  # 0 .. 0.5; share of the budget over which it rises
VARIANCE_BETA = 0.9  # 0.5 .. 0.99; memory of each row's second moment
MATRIX_DECAY = 0.1  # 0 .. 1; cautious weight decay, falling to 0 with the budget
ORTHO_STEPS = 5  # 3 .. 5; Newton-Schulz iterations

# AdamW: everything else. Rates are for width 768 and scale with 1 / sqrt(width)
EMBEDDING_LR = 0.3  # 0.01 .. 2, log; token embeddings
VALUE_LR = 0.3  # 0.01 .. 2, log; value embeddings
HEAD_LR = 0.005  # 0.0005 .. 0.05, log; unembedding
SCALAR_LR = 0.02  # 0.001 .. 0.5, log; residual and x0 factors, gates
EMBEDDING_DECAY = 0.001  # 0 .. 0.05
VALUE_DECAY = 0.003  # 0 .. 0.05
HEAD_DECAY = 0.01  # 0 .. 0.1
BETA1 = 0.8  # 0.5 .. 0.95
BETA2 = 0.95  # 0.8 .. 0.999

# schedule, in shares of the budget
WARMUP = 0.0  # 0 .. 0.1
WARMDOWN = 0.7  # 0.1 .. 1; the rate falls over the last part
FINAL_LR = 0.05  # 0 .. 0.3; what is left of the rate at the end

# -----------------------------------------------------------------------------
# derived, not to be tuned

V, T = prepare.VOCABULARY, prepare.CONTEXT
WIDTH = math.ceil(DEPTH * ASPECT / HEAD_SIZE) * HEAD_SIZE
HEADS = WIDTH // HEAD_SIZE
WINDOWS = [
    T if i == DEPTH - 1 or WINDOW_PATTERN[i % len(WINDOW_PATTERN)] == "L" else max(1, T // SHORT_WINDOW)
    for i in range(DEPTH)
]

# -----------------------------------------------------------------------------
# attention: the same window on every back end. Query t sees keys t - window + 1 .. t


def band(length, window, device):
    """(length, length) bool, True where a query may look."""
    ago = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None]
    return (ago >= 0) & (ago < window)


def masked_attention(q, k, v, window):
    """Any device: SDPA, with a mask only where a window makes one necessary."""
    length = q.shape[2]
    if window >= length:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=band(length, window, q.device))


BLOCKS = {}  # FlexAttention's block masks, by (length, window)


def flex_attention(q, k, v, window):
    """CUDA: long layers by SDPA's fused kernels, short ones by compiled FlexAttention."""
    length = q.shape[2]
    if window >= length:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return compiled_flex(q, k, v, block_mask=BLOCKS[length, window])


def probe_flex():
    """Run a banded kernel and compare: importing one proves nothing about this GPU."""
    global compiled_flex
    from torch.nn.attention.flex_attention import create_block_mask
    from torch.nn.attention.flex_attention import flex_attention as flex

    compiled_flex = torch.compile(flex, dynamic=False)
    for window in set(WINDOWS) - {T}:
        def near(b, h, query, key, window=window):
            return (query >= key) & (query - key < window)
        BLOCKS[T, window] = create_block_mask(near, None, None, T, T, device="cuda")
        q, k, v = torch.randn(3, 1, HEADS, T, HEAD_SIZE, device="cuda", dtype=torch.bfloat16)
        with torch.no_grad():
            off = (flex_attention(q, k, v, window) - masked_attention(q, k, v, window)).abs().max()
        if not off < 0.05:
            raise RuntimeError(f"FlexAttention is {off} off")


ATTENTION = None  # chosen at the first forward pass, by running it


def attention(q, k, v, window):
    global ATTENTION
    if ATTENTION is None:
        ATTENTION = masked_attention
        if q.is_cuda:
            try:
                probe_flex()
                ATTENTION = flex_attention
            except Exception as error:  # whatever this GPU or its compiler cannot do
                print(f"FlexAttention does not work here ({error}); masked SDPA instead")
    fits = ATTENTION is masked_attention or (q.is_cuda and q.shape[2] == T)
    return (ATTENTION if fits else masked_attention)(q, k, v, window)


# -----------------------------------------------------------------------------
# model


def norm(x):
    return F.rms_norm(x, (x.shape[-1],))


class Linear(nn.Linear):
    """No bias; float32 weights, used in the type of what comes in."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype))


def rotate(x, cos, sin):
    """Rotary positions (Su et al. 2021) on (B, H, T, D)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1)


def has_values(layer):
    """Every other layer has value embeddings, the last one always."""
    return layer % 2 == (DEPTH - 1) % 2


class Attention(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.window = WINDOWS[layer]
        self.q, self.k, self.v, self.out = (Linear(WIDTH, WIDTH) for _ in range(4))
        self.values = nn.Embedding(V, WIDTH) if has_values(layer) else None
        self.gate = Linear(min(GATE_CHANNELS, WIDTH), HEADS) if has_values(layer) else None

    def forward(self, x, ids, cos, sin):
        b, t, _ = x.shape
        q, k, v = (project(x).view(b, t, HEADS, HEAD_SIZE) for project in (self.q, self.k, self.v))
        if self.values is not None:  # the token speaks for itself, as far as its gate is open
            gate = 2 * torch.sigmoid(self.gate(x[..., : self.gate.in_features]))
            v = v + gate[..., None] * self.values(ids).to(x.dtype).view(v.shape)
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        q, k = (norm(rotate(y, cos, sin)) * QK_SCALE for y in (q, k))
        y = attention(q, k, v, self.window)
        return self.out(y.transpose(1, 2).reshape(b, t, WIDTH))


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = Linear(WIDTH, MLP_RATIO * WIDTH), Linear(MLP_RATIO * WIDTH, WIDTH)

    def forward(self, x):
        return self.down(F.relu(self.up(x)).square())


class Block(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.attention, self.mlp = Attention(layer), MLP()

    def forward(self, x, ids, cos, sin):
        x = x + self.attention(norm(x), ids, cos, sin)
        return x + self.mlp(norm(x))


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(V, WIDTH)
        self.blocks = nn.ModuleList(Block(i) for i in range(DEPTH))
        self.head = Linear(WIDTH, V)
        fall = torch.linspace(1, 0, DEPTH) if DEPTH > 1 else torch.ones(1)
        self.residual = nn.Parameter(1 + (RESIDUAL_INIT - 1) * fall)
        self.x0 = nn.Parameter(torch.full((DEPTH,), X0_INIT))
        half = HEAD_SIZE // 2
        turns = torch.arange(T)[:, None] / ROPE_BASE ** (torch.arange(half) / half)
        self.register_buffer("cos", turns.cos(), persistent=False)
        self.register_buffer("sin", turns.sin(), persistent=False)
        self.initialise()

    def initialise(self):
        for module in self.modules():
            if isinstance(module, Linear):
                edge = INIT_SCALE * (3 / module.in_features) ** 0.5
                nn.init.uniform_(module.weight, -edge, edge)
        for block in self.blocks:  # every layer starts as the identity
            nn.init.zeros_(block.attention.out.weight)
            nn.init.zeros_(block.mlp.down.weight)
            if block.attention.values is not None:
                edge = INIT_SCALE * (3 / WIDTH) ** 0.5
                nn.init.uniform_(block.attention.values.weight, -edge, edge)
                nn.init.zeros_(block.attention.gate.weight)
        nn.init.normal_(self.embed.weight, std=EMBEDDING_INIT)
        nn.init.normal_(self.head.weight, std=HEAD_INIT)

    def forward(self, ids):
        """ids (B, T) -> logits (B, T, V), float32"""
        half = torch.bfloat16 if ids.is_cuda else torch.float32  # bf16 pays on tensor cores
        cos, sin = (c[: ids.shape[1]].to(half) for c in (self.cos, self.sin))
        x = x0 = norm(self.embed(ids).to(half))
        for i, block in enumerate(self.blocks):
            x = self.residual[i].to(half) * x + self.x0[i].to(half) * x0
            x = block(x, ids, cos, sin)
        logits = self.head(norm(x)).float()
        return SOFTCAP * torch.tanh(logits / SOFTCAP)


def build_model():
    return GPT()


def loss_of(model, x, y):
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


# -----------------------------------------------------------------------------
# Muon: momentum, orthogonalised (Jordan et al. 2024), with each row's variance
# normalised (NorMuon, Li et al. 2025) and cautious weight decay (Chen et al. 2025)

# Polar Express (Amsel et al. 2025): the best odd quintics for five iterations
QUINTICS = [
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
]


def orthogonalise(g):
    """(N, rows, columns) -> the nearest (semi-)orthogonal matrices, roughly."""
    x = g.bfloat16() if g.is_cuda else g
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-6)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for a, b, c in QUINTICS[:ORTHO_STEPS]:
        s = x @ x.mT
        x = a * x + (b * s + c * (s @ s)) @ x
    return (x.mT if tall else x).to(g.dtype)


def muon_update(g, momentum, variance, weight, lr, beta, decay):
    """One step for a stack of matrices of one shape, in place."""
    momentum.lerp_(g, 1 - beta)
    update = orthogonalise(g.lerp(momentum, beta))
    size = update.norm(dim=(-2, -1), keepdim=True)
    variance.lerp_(update.square().mean(dim=-1, keepdim=True), 1 - VARIANCE_BETA)
    update = update * torch.rsqrt(variance + 1e-10)
    update = update * (size / (update.norm(dim=(-2, -1), keepdim=True) + 1e-10))
    update = update * max(1, g.shape[-2] / g.shape[-1]) ** 0.5
    agrees = (update * weight) > 0  # decay only where it does not work against the step
    weight.sub_(lr * (update + decay * weight * agrees))


class Muon:
    """Matrices of the same shape are stepped as one stack."""

    def __init__(self, matrices):
        self.stacks = []
        for shape in dict.fromkeys(m.shape for m in matrices):
            members = [m for m in matrices if m.shape == shape]
            stack = torch.stack([m.detach() for m in members])
            moments = torch.zeros_like(stack), torch.zeros_like(stack[..., :1])
            self.stacks.append((members, *moments))
        # CUDA: one graph a shape; numbers that change go in as tensors, or it recompiles
        self.update = torch.compile(muon_update, dynamic=False) if matrices[0].is_cuda else muon_update
        self.numbers = torch.zeros(3, device=matrices[0].device)

    @torch.no_grad()
    def step(self, lr, beta, decay):
        self.numbers.copy_(torch.tensor([lr, beta, decay]))
        rate, momentum, shrink = self.numbers
        for members, moment, variance in self.stacks:
            weight = torch.stack(members)
            self.update(torch.stack([m.grad for m in members]), moment, variance, weight, rate, momentum, shrink)
            torch._foreach_copy_(members, list(weight.unbind()))

    def forget(self):
        for _, moment, variance in self.stacks:
            moment.zero_(), variance.zero_()


# -----------------------------------------------------------------------------
# who is stepped by whom


def groups_of(model):
    """(matrices for Muon, parameter groups for AdamW): every parameter once."""
    gates = [b.attention.gate.weight for b in model.blocks if b.attention.gate is not None]
    values = [b.attention.values.weight for b in model.blocks if b.attention.values is not None]
    apart = {id(p) for p in gates + values}
    matrices = [p for p in model.blocks.parameters() if id(p) not in apart]
    scale = (WIDTH / 768) ** -0.5
    adam = [
        {"params": [model.embed.weight], "base": EMBEDDING_LR * scale, "weight_decay": EMBEDDING_DECAY},
        {"params": values, "base": VALUE_LR * scale, "weight_decay": VALUE_DECAY},
        {"params": [model.head.weight], "base": HEAD_LR * scale, "weight_decay": HEAD_DECAY},
        {"params": [*gates, model.residual, model.x0], "base": SCALAR_LR, "weight_decay": 0.0},
    ]
    return matrices, adam


def rate_at(progress):
    """Factor on every learning rate."""
    if progress < WARMUP:
        return progress / WARMUP
    left = min(1.0, (1 - progress) / WARMDOWN) if WARMDOWN else 1.0
    return FINAL_LR + (1 - FINAL_LR) * left


def momentum_at(progress):
    risen = min(1.0, progress / MOMENTUM_RAMP) if MOMENTUM_RAMP else 1.0
    return MOMENTUM_START + (MOMENTUM - MOMENTUM_START) * risen


def flops_per_token():
    """Of training: 6 per matrix weight, 12 x width x window per layer's attention."""
    per_layer = (4 + 2 * MLP_RATIO) * WIDTH**2
    return 6 * (DEPTH * per_layer + WIDTH * V) + sum(12 * WIDTH * w for w in WINDOWS)


PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12, "3090": 71e12}  # dense bf16


def mfu_percent(tokens_per_second):
    """Share of the GPU's bf16 peak; unknown where the peak is."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak = next((flops for key, flops in PEAKS.items() if key in name), None)
    return round(100 * flops_per_token() * tokens_per_second / peak, 1) if peak else "unknown"


# -----------------------------------------------------------------------------
# the run. In the evaluator's process `begin` serves the model and never returns

run = prepare.begin(build_model)
cuda = run.device == "cuda"
torch.set_float32_matmul_precision("high")
model = build_model().to(run.device)
matrices, adam_groups = groups_of(model)
muon = Muon(matrices)
adam = torch.optim.AdamW(adam_groups, lr=0.0, betas=(BETA1, BETA2), eps=1e-10, fused=cuda)
loss_fn = torch.compile(loss_of, dynamic=False) if cuda else loss_of

rows = max(1, DEVICE_BATCH // T)
passes = max(1, TOTAL_BATCH // (rows * T))  # forward passes in one step


def step(progress):
    """One optimiser step on the gradients that have piled up."""
    rate = rate_at(progress)
    for group in adam.param_groups:
        group["lr"] = group["base"] * rate
    adam.step()
    muon.step(MATRIX_LR * rate, momentum_at(progress), MATRIX_DECAY * (1 - progress))
    model.zero_grad(set_to_none=True)


# warm-up on random tokens: compiles everything before the clock, then forgets
if cuda:
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(2):
        noise = torch.randint(V, (rows, T), device=run.device)
        (loss_fn(model, noise, noise) / passes).backward()
        step(0.0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(before[name])
    adam.state.clear()
    muon.forget()
    del before
    torch.cuda.synchronize()
gc.collect(), gc.freeze(), gc.disable()  # a collection costs half a second

shown, done = time.monotonic(), 0
for x, y in run.batches(rows, T):  # the first touch starts the clock
    loss = loss_fn(model, x, y)
    (loss / passes).backward()
    done += 1
    if done % passes == 0:
        step(run.progress)
    if time.monotonic() - shown > 2:  # .item() waits for the GPU: seldom
        run.report(loss.item())
        shown = time.monotonic()
run.report(loss.item())
run.submit(
    model, depth=DEPTH, width=WIDTH, heads=HEADS, short_window=min(WINDOWS), batch=passes * rows * T,
    flops_per_token=flops_per_token(), mfu_percent=mfu_percent(run.tokens_seen / run.seconds),
)
