"""The hypothesis: a small GPT, its optimisers and its five minutes. Mutable.

One file, straight down: constants, attention, model, optimisers, schedule, loop. Change
anything, as long as `build_model()` gives a model whose logits at t depend only on the
weights and on tokens up to t of the same row. Seed, clock and score are the harness's.
"""

import collections
import contextlib
import gc
import importlib.util
import json
import math
import os
import time
from pathlib import Path

import prepare
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

# -----------------------------------------------------------------------------
# constants: every number worth turning. A comment may state a range

# model: one dial, the rest follows
DEPTH = 4  # 2 .. 16; layers
ASPECT = 32  # 16 .. 256, log; width = DEPTH * ASPECT, rounded up to whole heads
HEAD_SIZE = 64  # fixed; the optimiser leaves it alone, you need not
MLP_RATIO = 4  # 2 .. 6; hidden size of the MLP in widths
WINDOW_PATTERN = "SSSL"  # one of: "L", "SL", "SSL", "SSSL", "SSSSL"; short or long, repeated over layers, the last is long
SHORT_WINDOW = 4  # 2 .. 16; a short layer sees context / this many tokens
ROPE_BASE = 1024.0  # 100 .. 1000000, log; the slowest rotary wavelength, in radians
STILL = 0.75  # 0 .. 0.8; share of each head's channels that do not turn with the position
SOFTCAP = 15.0  # 5 .. 50, log; logits are squashed into +- this
QK_SCALE = 1.15  # 0.5 .. 2; sharpens attention after QK-norm
INIT_SCALE = 0.7  # 0.2 .. 1.5; of all matrices, in 1 / sqrt(fan in)
EMBEDDING_INIT = 0.8  # 0.1 .. 2; std of token embeddings
HEAD_INIT = 0.001  # 0.0001 .. 0.05, log; std of the unembedding
X0_INIT = 0.05  # 0 .. 0.5; how much of the embedding is added back in every layer
RESIDUAL_INIT = 1.05  # 0.8 .. 1.2; first layer's factor on the residual, falling to 1 at the last
GATE_CHANNELS = 32  # 4 .. 64; channels that open the gates of values and heads
NGRAM = 3  # 1 .. 4; a memory of what the last 2, .. NGRAM tokens mean together; 1: none
NGRAM_ROWS = 128  # 1 .. 2048, log; rows of each of its tables, in vocabularies
NGRAM_VALUES = 2  # 0 .. 8; last layers that have it in their values too
NGRAM_ASIDE = 0.06  # 0.01 .. 0.5, log; share of all places that never move a row, and alone read them in text read again
LOOKUPS = 3  # 0 .. 3; what followed the same 1, .. LOOKUPS tokens when they last stood in the document

# batch
DEVICE_BATCH = 2**11  # fixed: changes speed and memory only; tokens in one forward pass, halved until they fit
TOTAL_BATCH = 2**11  # 2**10 .. 2**20; tokens in one step

# Muon: the matrices of attention and MLP
MATRIX_LR = 0.03  # 0.003 .. 0.3, log
MOMENTUM = 0.95  # 0.8 .. 0.99
MOMENTUM_START = 0.85  # 0.5 .. 0.95; rises to MOMENTUM
MOMENTUM_RAMP = 0.15  # 0 .. 0.5; share of the budget over which it rises
VARIANCE_BETA = 0.9  # 0.5 .. 0.99; memory of each row's second moment
MATRIX_DECAY = 0.1  # 0 .. 1; cautious weight decay, falling to 0 with the budget
ORTHO_STEPS = 5  # 3 .. 5; Newton-Schulz iterations

# AdamW: everything else. Rates are for width 768 and scale with 1 / sqrt(width)
EMBEDDING_LR = 0.3  # 0.01 .. 2, log; embeddings of tokens and of n-grams
VALUE_LR = 0.3  # 0.01 .. 2, log; value embeddings
NGRAM_LR = 0.6  # 0.01 .. 2, log; first step of a row of the memory
NGRAM_FALL = 0.25  # 0 .. 1; its n-th step is n ** NGRAM_FALL times smaller
NGRAM_RARE = 16.0  # 1 .. 1000, log; after fewer steps than this it keeps its rate to the end
LOOKUP_LR = 0.15  # 0.01 .. 2, log; embeddings of what was looked up
HEAD_LR = 0.005  # 0.0005 .. 0.05, log; unembedding
SCALAR_LR = 0.02  # 0.001 .. 0.5, log; residual and x0 factors, gates
EMBEDDING_DECAY = 0.001  # 0 .. 0.05
VALUE_DECAY = 0.003  # 0 .. 0.05; of value embeddings and what was looked up
NGRAM_DECAY = 0.003  # 0 .. 0.05; of a row of the memory, in each of its steps
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
KINDS = [WINDOW_PATTERN[i % len(WINDOW_PATTERN)] for i in range(DEPTH - 1)] + ["L"]
WINDOWS = {"L": T, "S": max(1, T // SHORT_WINDOW)}
VALUED = [i for i in range(DEPTH) if i % 2 == (DEPTH - 1) % 2]  # layers with value embeddings, the last among them
TOLD = range(DEPTH)[-NGRAM_VALUES:] if NGRAM > 1 and NGRAM_VALUES else ()  # layers with the memory in their values
PIECE = 2**16  # tokens whose logits exist at a time

# what to multiply in: bf16 pays on tensor cores; fp16 where a GPU has no bf16
HALF = {"cpu": torch.float32, "mps": torch.float32, "meta": torch.float32}  # meta: shapes only, before a run
if torch.cuda.is_available():
    HALF["cuda"] = torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16

# -----------------------------------------------------------------------------
# attention: (B, T, H, D) each -> the same. Query t sees keys t - window + 1 .. t, on every
# back end: each is run once, compared with `masked`, and the fastest right one is taken


def masked(q, k, v, window):
    """The reference; right on every device, slow where a mask costs the fused kernels."""
    t = q.shape[1]
    ago = torch.arange(t, device=q.device)[:, None] - torch.arange(t, device=q.device)
    mask = (ago >= 0) & (ago < window)
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask).transpose(1, 2)


def causal(backend=None):
    """SDPA without a mask, for windows as long as the row; backend None: torch's choice."""

    def attend(q, k, v, window):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        with contextlib.nullcontext() if backend is None else sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

    return attend


# The next three import as late as this: two load torch's compiler, for seconds that a CPU has no use for


def varlen():
    """FlashAttention 2 over packed rows: the one fused window that comes with torch."""
    from torch.nn.attention.varlen import varlen_attn

    def attend(q, k, v, window):
        b, t = q.shape[:2]
        ends = torch.arange(0, (b + 1) * t, t, device=q.device, dtype=torch.int32)
        packed = (x.flatten(0, 1) for x in (q, k, v))
        return varlen_attn(*packed, ends, ends, t, t, window_size=(window - 1, 0)).view(q.shape)

    return attend


def flash3():
    from flash_attn_interface import flash_attn_func

    return lambda q, k, v, window: flash_attn_func(q, k, v, causal=True, window_size=(window - 1, 0))


def flash4():
    from flash_attn.cute import flash_attn_func

    @torch.compiler.disable  # it compiles its kernels itself, in Python that is not to be traced
    def attend(q, k, v, window):
        return flash_attn_func(q, k, v, causal=True, window_size=(window - 1, 0))[0]  # and the logarithms of sums

    return attend


def flex(compiled=True):
    """FlexAttention: last, because compiling it costs ten seconds."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    fused = torch.compile(flex_attention, dynamic=False) if compiled else flex_attention
    blocks = {}

    def attend(q, k, v, window):
        if (q.shape[1], window) not in blocks:

            def near(b, h, query, key):
                return (query >= key) & (query - key < window)

            blocks[q.shape[1], window] = create_block_mask(near, None, None, q.shape[1], q.shape[1], device=q.device)
        block = blocks[q.shape[1], window]
        return fused(*(x.transpose(1, 2) for x in (q, k, v)), block_mask=block).transpose(1, 2)

    return attend


def backend(name):
    return lambda: causal(getattr(SDPBackend, name))


# Of each kind of layer on CUDA: name -> what makes it. A later group is tried when the one before has none that works
CANDIDATES = {
    "L": [{"cuDNN": backend("CUDNN_ATTENTION"), "flash": backend("FLASH_ATTENTION"), "FA3": flash3, "FA4": flash4},
          {"efficient": backend("EFFICIENT_ATTENTION"), "math": backend("MATH")}],
    "S": [{"varlen": varlen, "FA3": flash3, "FA4": flash4}, {"flex": flex}, {"masked": lambda: masked}],
}


@torch.inference_mode(False)
@torch.enable_grad()
def seconds_of(attend, q, k, v, window, serving):
    """Of one pass forward and back, the best of three; RuntimeError if it is wrong. serving: forward, once."""
    wanted = masked(*(x[:1].float() for x in (q, k, v)), window)
    q, k, v = (x.clone().requires_grad_() for x in (q, k, v))
    taken = []
    for _ in range(1 if serving else 3):
        begun = time.perf_counter()
        found = attend(q, k, v, window)
        if not serving:
            found.backward(found)
        off = (found[:1].float() - wanted).abs().max().item()  # waits for the device
        taken.append(time.perf_counter() - begun)
    if not off < 0.05:
        raise RuntimeError(f"wrong by {off}")
    return min(taken)


def fastest(groups, window, device, serving):
    """(name, function) of the fastest right candidate of the first group that has any; serving: of its first.

    Two processes that serve must agree to the last bit, and what is fastest is a matter of luck where two are close."""
    for group in groups:
        times, attends = {}, {}
        for name, make in group.items():
            shape = max(1, 2**15 // T), T, HEADS, HEAD_SIZE
            dice = torch.Generator(device).manual_seed(0)  # its own: the run's seed is for the run
            q, k, v = (torch.randn(shape, device=device, dtype=HALF[device], generator=dice) for _ in range(3))
            try:
                attends[name] = make()
                times[name] = seconds_of(attends[name], q, k, v, window, serving)
                if serving:
                    break
            except Exception as error:  # whatever this GPU, its driver or its compiler cannot do
                print(f"attention: {name} does not work here: {str(error)[:200]}")
        if times:
            name = min(times, key=times.get)
            return name, attends[name]
    raise RuntimeError("no attention works on this machine")


def remembered(groups, window, device):
    """`fastest` for training: what it was here before is tried alone, and taken if it is still right.

    So a night's runs multiply alike. Noted beside the compiled code, which is as much this machine's; only there."""
    note = Path(os.getenv("TORCHINDUCTOR_CACHE_DIR", os.devnull)) / "attention.json"
    extra = [name for name in ("flash_attn_interface", "flash_attn") if importlib.util.find_spec(name)]
    key = f"{torch.cuda.get_device_name()} {extra}: {HALF[device]} {T} x {HEADS} x {HEAD_SIZE}, window {window}"
    try:
        known = dict(json.loads(note.read_text()))
    except (OSError, ValueError, TypeError):  # none yet, or not ours
        known = {}
    before = [{name: group[name]} for group in groups for name in group if name == known.get(key)]
    chosen = fastest(before + groups, window, device, serving=False)
    if note.parent.is_dir():
        note.write_text(json.dumps(known | {key: chosen[0]}))
    return chosen


CHOSEN = {}  # kind of layer -> (name, function); filled before the clock starts


def attention_of(kind, device, serving=True):
    if kind not in CHOSEN:
        window = WINDOWS[kind]
        if device == "cuda":
            groups = CANDIDATES["L" if window >= T else "S"]
            CHOSEN[kind] = fastest(groups, window, device, serving) if serving else remembered(groups, window, device)
        else:
            CHOSEN[kind] = ("SDPA", causal()) if window >= T else ("masked", masked)
    return CHOSEN[kind][1]


# -----------------------------------------------------------------------------
# model


def norm(x):
    return F.rms_norm(x, (x.shape[-1],))


def rotate(x, cos, sin):
    """Rotary positions (Su et al. 2021) on (B, T, H, D)."""
    return x * cos + x.unflatten(-1, (2, -1)).flip(-2).flatten(-2) * sin


def uniform(*shape):
    edge = INIT_SCALE * (3 / WIDTH) ** 0.5
    return nn.Parameter(torch.empty(shape).uniform_(-edge, edge))


def normal(std, *shape):
    return nn.Parameter(torch.empty(shape).normal_(std=std))


def before(x, value=V - 1):
    """Each row one place later."""
    return F.pad(x[:, :-1], (1, 0), value=value)


def magnitude(n):
    """0, 1 .. 2, 3 .. 6, 7 .. 14, and so on: their number, at most 15"""
    return (n + 1).float().log2().long().clamp(max=15)


def hashed(ids):
    """ids (B, T) -> 32 bits for the last 2, .. NGRAM tokens (B, T, NGRAM - 1), and by the last eight, whether the place is set aside"""
    keys, key, last = [], ids, ids
    for _ in range(7):
        last = before(last)
        key = key * V + last
        for shift, prime in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
            key = key & 0xFFFFFFFF
            key = (key ^ key >> shift) * prime
        keys.append(key)
    return torch.stack(keys, dim=-1)[..., : NGRAM - 1], key[..., None] % 4096 < 4096 * NGRAM_ASIDE


class Memory(nn.Module):
    """What the last 2, .. NGRAM tokens mean together: a row of a hashed table for each n.

    A step moves the rows of its batch and no others. `counts` knows how often an n-gram was seen, `trust` learns
    what rows seen so often are worth. A row knows part of each place that moved it by heart: read there again it
    says more than on new text, and the layers above learn to trust it too much. So rows move in the first pass
    over the text only, and later they are read where they were never moved: at the places set aside."""

    def __init__(self):
        super().__init__()
        self.size = NGRAM_ROWS * V
        self.register_buffer("rows", torch.zeros((NGRAM - 1) * self.size + 1, WIDTH, dtype=torch.bfloat16))  # the last stays 0
        self.register_buffer("counts", torch.zeros((NGRAM - 1) * 16 * self.size + 1, dtype=torch.int32))
        self.trust = nn.Parameter(torch.ones(NGRAM - 1, 16))
        self.pending, self.stats = [], None  # what waits for a step; of each row how many it took, and their squares
        self.again, self.hashed = False, hashed  # is the text read again?

    def forget(self):
        self.rows.zero_(), self.counts.zero_()
        self.pending, self.stats = [], None

    def forward(self, ids):
        """ids (B, T) -> rows (B, T, NGRAM - 1, WIDTH), and how often each was seen, as a magnitude"""
        keys, aside = self.hashed(ids)
        table = torch.arange(NGRAM - 1, device=ids.device)
        slots = keys % (16 * self.size) + 16 * self.size * table
        seen = self.counts[slots]
        known = aside if self.again and self.training else True
        rows = torch.where(known & (seen > 0), keys % self.size + self.size * table, len(self.rows) - 1)
        found = F.embedding(rows, self.rows)
        if torch.is_grad_enabled() and NGRAM > 1:
            found.requires_grad_()
            if not self.again:
                places = [torch.where(aside, len(of) - 1, at).flatten() for of, at in ((self.rows, rows), (self.counts, slots))]
                found.register_hook(lambda grad: self.pending.append((*places, grad.flatten(0, -2))))
        return found, magnitude(seen)

    @torch.no_grad()
    def step(self, lr, rate):
        pending, self.pending = self.pending, []
        if not pending:
            return
        rows, slots, grads = (torch.cat(parts) for parts in zip(*pending, strict=True))
        self.counts.index_add_(0, slots, torch.ones_like(slots, dtype=torch.int32))
        self.counts[-1] = 0
        if self.stats is None:
            self.stats = torch.zeros(len(self.rows), 2, device=rows.device)
        found, order = rows.sort()
        number = (found != before(found[None], -1)[0]).cumsum(0) - 1  # of each row among those of the batch
        moved = torch.full_like(found, len(self.rows) - 1).scatter_(0, number, found)
        number = torch.empty_like(number).scatter_(0, order, number)
        total = torch.ops.aten.embedding_dense_backward(grads, number, len(number), -1, False)
        numbers = torch.tensor([lr, rate]).to(rows.device, non_blocking=True)
        self.rows[moved], self.stats[moved] = row_update(self.rows[moved], self.stats[moved], total, moved < len(self.rows) - 1, *numbers)


def row_update(weight, stats, grad, moves, lr, rate):
    """Of some rows of the memory, of which those that are no rows do not move -> weight and stats after it"""
    grad = grad.float()
    n, squares = stats[:, :1] + 1, stats[:, 1:] + grad.square().mean(-1, keepdim=True)
    lr = moves[:, None] * lr * n**-NGRAM_FALL * rate ** (n / (n + NGRAM_RARE))
    weight = weight.float() * (1 - lr * NGRAM_DECAY) - lr * torch.rsqrt(squares / n + 1e-30) * grad
    return weight.bfloat16(), torch.cat((n, squares), dim=-1)


def looked_up(ids):
    """ids (B, T) -> the token that followed the same 1, .. LOOKUPS tokens when they last stood in the document, V if they did not

    (B, T, LOOKUPS); how long ago the most of them did, and how long the document is by now, as magnitudes."""
    at, mark = torch.arange(ids.shape[1], device=ids.device).expand_as(ids), ids == V - 1
    start = torch.where(mark, at, 0).cummax(dim=1).values
    key, last, follows, ago = mark.cumsum(dim=1), ids, [], torch.zeros_like(ids)
    for n in range(LOOKUPS):
        key, last = key * V + last, before(last)
        found, order = key.sort(dim=1, stable=True)
        same, place = found == before(found, -1), before(order, 0)
        after = torch.where(same, ids.gather(1, (place + 1).clamp(max=ids.shape[1] - 1)), V)
        follows.append(torch.empty_like(ids).scatter_(1, order, after))
        gap = torch.empty_like(ids).scatter_(1, order, torch.where(same, order - place, 0))
        ago = torch.where(gap > 0, magnitude(gap) + 16 * n, ago)
    return follows, ago, magnitude(at - start) + 16 * (start > 0)


# Of GPT: what lies between two matrix products. Compiled it is a kernel or two, which all layers share
FUSED = ("opening", "mixed", "heads", "opened", "added", "squared", "nats")


class GPT(nn.Module):
    """The matrices of all layers lie in stacks, as Muon wants them; float32, used in `half`."""

    def __init__(self):
        super().__init__()
        self.embed = normal(EMBEDDING_INIT, V, WIDTH)
        self.memory = Memory()
        self.follows = nn.Parameter(torch.zeros(LOOKUPS, V + 1, WIDTH))
        self.places = nn.Parameter(torch.zeros(2, 48, WIDTH))
        self.values = uniform(len(VALUED), V, WIDTH)
        self.gates = nn.Parameter(torch.zeros(DEPTH, 3 * HEADS, min(GATE_CHANNELS, WIDTH)))
        self.attend = uniform(DEPTH, 4, WIDTH, WIDTH)  # q, k, v, out
        self.up = uniform(DEPTH, MLP_RATIO * WIDTH, WIDTH)
        self.down = nn.Parameter(torch.zeros(DEPTH, MLP_RATIO * WIDTH, WIDTH))  # as it multiplies: (in, out)
        self.head = normal(HEAD_INIT, V, WIDTH)
        with torch.no_grad():
            self.attend[:, 3].zero_()  # with `down`: every layer starts as the identity
        fall = torch.linspace(1, 0, DEPTH) if DEPTH > 1 else torch.ones(1)
        self.residual = nn.Parameter(1 + (RESIDUAL_INIT - 1) * fall)
        self.x0 = nn.Parameter(torch.full((DEPTH,), X0_INIT))

        pair = torch.arange(HEAD_SIZE) % (HEAD_SIZE // 2)  # a channel turns with the one half a head away
        turning = HEAD_SIZE // 2 - int(STILL * HEAD_SIZE / 2)
        turns = torch.arange(T)[:, None] / ROPE_BASE ** (pair / turning) * (pair < turning)
        side = torch.where(torch.arange(HEAD_SIZE) < HEAD_SIZE // 2, 1, -1)
        self.register_buffer("cos", turns.cos()[:, None], persistent=False)
        self.register_buffer("sin", (turns.sin() * side)[:, None], persistent=False)
        self.register_buffer("still", pair >= turning, persistent=False)

    def opening(self, ids, rows, seen, follows, ago, far):
        """ids (B, T), what the memory says and what was looked up -> (B, T, WIDTH), and the memory alone"""
        trust = F.embedding(seen + 16 * torch.arange(NGRAM - 1, device=ids.device), self.memory.trust.view(-1, 1))
        told = (rows * trust).sum(dim=-2)
        x = F.embedding(ids, self.embed) + told
        for follow, table in zip(follows, self.follows, strict=True):
            x = x + F.embedding(follow, table)
        if LOOKUPS:
            x = x + F.embedding(ago, self.places[0]) + F.embedding(far, self.places[1])
        half = HALF[ids.device.type]
        return norm(x.to(half)), told.to(half)

    def mixed(self, x, late, x0, mix):
        """-> the residual, as it is read, and the channels that open the gates"""
        x = mix[0] * (x + late) + mix[1] * x0
        read = norm(x)
        return x, read, read[..., :GATE_CHANNELS].contiguous()

    def heads(self, kind, qkv, few, gate, table, told, ids):
        """-> q, k, v (B, T, HEADS, HEAD_SIZE), and how far each head's answer will count"""
        q, k, v = qkv.unflatten(-1, (3, HEADS, HEAD_SIZE)).unbind(2)
        open_values, open_told, open_heads = (2 * torch.sigmoid(few @ gate.mT))[..., None].chunk(3, dim=-2)
        if table is not None:  # the token speaks for itself, as far as its gate is open
            v = v + open_values * F.embedding(ids, table).view(v.shape)
        if told is not None:
            v = v + open_told * told.view(v.shape)
        cos, sin = (turn[: q.shape[1]].to(q.dtype) for turn in (self.cos, self.sin))
        q, k = (rotate(norm(y), cos, sin) * QK_SCALE for y in (q, k))
        if kind == "L":  # still channels ask what came before: one layer finds the end of a known phrase
            k = torch.where(self.still, torch.cat((k[:, :1], k[:, :-1]), dim=1), k)
        return q, k, v, open_heads

    def opened(self, y, open_heads):
        return (y * open_heads).flatten(-2)

    def added(self, x, y):
        x = x + y
        return x, norm(x)

    def squared(self, hidden):
        return F.relu(hidden).square()

    def layer(self, kind, x, late, x0, mix, weights, gate, up, down, table, told, ids):
        """One layer: (x, what the MLP before adds to it) -> the same. So that sum is made where it is read."""
        x, read, few = self.mixed(x, late, x0, mix)
        q, k, v, open_heads = self.heads(kind, read @ weights[:3].flatten(0, 1).mT, few, gate, table, told, ids)
        y = attention_of(kind, x.device.type)(q, k, v, WINDOWS[kind])
        x, read = self.added(x, self.opened(y, open_heads) @ weights[3].mT)
        return x, self.squared(read @ up.mT) @ down

    def hidden(self, ids):
        """ids (B, T) -> what the unembedding reads, (B * T, WIDTH)"""
        half = HALF[ids.device.type]
        attend, gates, up, down, values = (p.to(half).unbind() for p in (self.attend, self.gates, self.up, self.down, self.values))
        mixes = torch.stack((self.residual, self.x0), dim=1).to(half).unbind()
        x, told = self.opening(ids, *self.memory(ids), *looked_up(ids))
        x0 = x
        late = torch.zeros_like(x)
        for i, kind in enumerate(KINDS):
            table = values[VALUED.index(i)] if i in VALUED else None
            x, late = self.layer(kind, x, late, x0, mixes[i], attend[i], gates[i], up[i], down[i], table, told if i in TOLD else None, ids)
        return self.added(x, late)[1].view(-1, WIDTH)

    def forward(self, ids):
        """ids (B, T) -> logits (B, T, V), float32"""
        x = self.hidden(ids)
        return (SOFTCAP * torch.tanh((x @ self.head.to(x.dtype).mT).float() / SOFTCAP)).view(*ids.shape, V)

    def losses(self, ids, y):
        """ids, y (B, T) -> nats of each token (B, T): what a process that serves and has compiled is asked for"""
        x = self.hidden(ids)
        return self.nats(x @ self.head.to(x.dtype).mT, y.flatten()).view(y.shape)

    def nats(self, logits, y):
        return capped_loss(logits, y)[0].clamp(min=0)

    def compile(self):
        """The training loop asks for it, and a process that serves if it is asked for much."""
        small = min(DEVICE_BATCH, TOTAL_BATCH) * WIDTH < 2**25  # a GPU is done with a layer before it is sent the next piece
        for part in ("opening", "layer", "added", "nats") if small else FUSED:
            setattr(self, part, torch.compile(getattr(self, part), dynamic=False))
        self.memory.hashed = torch.compile(hashed, dynamic=False)


def build_model():
    return GPT()


# -----------------------------------------------------------------------------
# loss: whole logits never exist. Their gradients are made on the way forward, a piece at
# a time: 2 GB where 131 072 tokens would take 7


def capped_loss(logits, y):
    """(n, V) -> loss (n,), as `losses` has it too, and its gradient by the logits. No maximum is taken out: they are capped."""
    z = 2 * SOFTCAP * torch.sigmoid(logits.float() * (2 / SOFTCAP)) - SOFTCAP  # SOFTCAP * tanh(logits / SOFTCAP)
    total = z.exp().sum(-1, keepdim=True)
    right = torch.arange(V, device=y.device) == y[:, None]
    loss = total.log().squeeze(-1) - (z * right).sum(-1)
    slope = 1 - (z / SOFTCAP).square()
    return loss, ((z.exp() / total - right.float()) * slope).to(logits.dtype)


class Unembed(torch.autograd.Function):
    """x (N, WIDTH), head (V, WIDTH), y (N,) -> mean loss"""

    @staticmethod
    def forward(ctx, x, head, y):
        weight = head.to(x.dtype)
        dx, dw, losses = torch.empty_like(x), torch.zeros_like(head), []
        for xs, ys, dxs in zip(x.split(PIECE), y.split(PIECE), dx.split(PIECE), strict=True):
            loss, grad = piece_loss(xs @ weight.mT, ys)
            torch.mm(grad, weight, out=dxs)
            dw += grad.mT @ xs
            losses.append(loss.sum())
        ctx.save_for_backward(dx, dw)
        return torch.stack(losses).sum() / len(y)

    @staticmethod
    def backward(ctx, scale):
        dx, dw = ctx.saved_tensors
        scale = scale / len(dx)
        return dx * scale.to(dx.dtype), dw * scale, None


piece_loss = capped_loss  # compiled where that pays, see below


def loss_of(model, x, y):
    return Unembed.apply(model.hidden(x), model.head, y.flatten())


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
    x = (g / (g.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-6)).to(HALF[g.device.type])
    tall = x.shape[-2] > x.shape[-1]
    one = torch.eye(min(x.shape[-2:]), dtype=x.dtype, device=x.device)
    for a, b, c in QUINTICS[:ORTHO_STEPS]:  # x stays as it lies: turned over, it would be copied
        s = x.mT @ x if tall else x @ x.mT
        quintic = a * one + b * s + c * (s @ s)
        x = x @ quintic if tall else quintic @ x
    return x.to(g.dtype)


def muon_update(g, momentum, variance, weight, lr, beta, decay):
    """One step for a stack of matrices of one shape, in place."""
    momentum.lerp_(g, 1 - beta)
    update = orthogonalise(g.lerp(momentum, beta))
    squares = update.square().mean(dim=-1, keepdim=True)
    variance.lerp_(squares, 1 - VARIANCE_BETA)
    scale = torch.rsqrt(variance + 1e-10)  # of each row; the matrix keeps its norm
    scale = scale * (squares.sum(dim=-2, keepdim=True) / ((squares * scale**2).sum(dim=-2, keepdim=True) + 1e-20)).sqrt()
    update = update * scale
    agrees = (update * weight) > 0  # decay only where it does not work against the step
    weight.sub_(lr * (update + decay * weight * agrees))


class Muon:
    """Steps stacks of matrices (.., rows, columns), each with its own factor on the rate."""

    def __init__(self, stacks):
        self.stacks = []
        for weight, factor in stacks:
            matrices = weight.detach().flatten(0, -3)
            self.stacks.append((weight, factor, matrices, torch.zeros_like(matrices), torch.zeros_like(matrices[..., :1])))
        # CUDA: one graph a shape; numbers that change go in as tensors, or it recompiles
        self.update = torch.compile(muon_update, dynamic=False) if stacks[0][0].is_cuda else muon_update

    @torch.no_grad()
    def step(self, lr, beta, decay):
        for weight, factor, matrices, momentum, variance in self.stacks:
            numbers = torch.tensor([lr * factor, beta, decay / factor]).to(weight.device, non_blocking=True)
            self.update(weight.grad.flatten(0, -3), momentum, variance, matrices, *numbers)

    def forget(self):
        for *_, momentum, variance in self.stacks:
            momentum.zero_(), variance.zero_()


# -----------------------------------------------------------------------------
# who is stepped by whom


def groups_of(model):
    """(stacks for Muon, parameter groups for AdamW): every parameter once."""
    stacks = [(model.attend, 1), (model.up, MLP_RATIO**0.5), (model.down, 1)]
    scale = (WIDTH / 768) ** -0.5
    adam = [
        {"params": [model.embed], "base": EMBEDDING_LR * scale, "weight_decay": EMBEDDING_DECAY},
        {"params": [model.follows, model.places], "base": LOOKUP_LR * scale, "weight_decay": VALUE_DECAY},
        {"params": [model.values], "base": VALUE_LR * scale, "weight_decay": VALUE_DECAY},
        {"params": [model.head], "base": HEAD_LR * scale, "weight_decay": HEAD_DECAY},
        {"params": [model.gates, model.residual, model.x0, model.memory.trust], "base": SCALAR_LR, "weight_decay": 0.0},
    ]
    return stacks, adam


def rate_at(progress):
    """Factor on every learning rate."""
    if progress < WARMUP:
        return progress / WARMUP
    left = min(1.0, (1 - progress) / WARMDOWN) if WARMDOWN else 1.0
    return FINAL_LR + (1 - FINAL_LR) * left


def momentum_at(progress):
    risen = min(1.0, progress / MOMENTUM_RAMP) if MOMENTUM_RAMP else 1.0
    return MOMENTUM_START + (MOMENTUM - MOMENTUM_START) * risen


def fitted(rows, passes, attempt):
    """(rows, passes) of a step that the card has memory for: the rows of a pass are halved until they fit."""
    while True:
        try:
            attempt(rows)
            return rows, passes
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
        torch.compiler.reset()  # or a third size would be one graph too many, and run uncompiled
        rows, passes = rows // 2, passes * 2


def flops_per_token():
    """Of training: 6 per matrix weight, 12 x width x window per layer's attention."""
    per_layer = (4 + 2 * MLP_RATIO) * WIDTH**2
    return 6 * (DEPTH * per_layer + WIDTH * V) + sum(12 * WIDTH * WINDOWS[kind] for kind in KINDS)


# -----------------------------------------------------------------------------
# the run. In the evaluator's process `begin` serves the model and never returns

run = prepare.begin(build_model)
cuda = run.device == "cuda"
torch.set_float32_matmul_precision("high")
for kind in set(KINDS):
    attention_of(kind, run.device, serving=False)
with torch.device(run.device):  # 0.6 s of random numbers on one core, otherwise
    model = build_model()
stacks, adam_groups = groups_of(model)
muon = Muon(stacks)
adam = torch.optim.AdamW(adam_groups, lr=0.0, betas=(BETA1, BETA2), eps=1e-10, fused=cuda)
if cuda:
    model.compile()
    piece_loss = torch.compile(capped_loss, dynamic=False)
    row_update = torch.compile(row_update, dynamic=False)

rows = max(1, min(DEVICE_BATCH, TOTAL_BATCH) // T)
passes = max(1, TOTAL_BATCH // (rows * T))  # forward passes in one step
# fp16 has no room for small gradients. Both optimisers are blind to scale, so nothing undoes this
boost = 2.0**12 if HALF[run.device] == torch.float16 else 1.0


def learn(x, y):
    """One forward and backward pass."""
    loss = loss_of(model, x, y)
    (loss * boost / passes).backward()
    return loss.detach()


def step(progress):
    """One optimiser step on the gradients that have piled up."""
    rate = rate_at(progress)
    for group in adam.param_groups:
        group["lr"] = group["base"] * rate
    adam.step()
    muon.step(MATRIX_LR * rate, momentum_at(progress), MATRIX_DECAY * (1 - progress))
    model.memory.step(NGRAM_LR * (WIDTH / 768) ** -0.5, rate)
    model.zero_grad(set_to_none=True)


def warm_up(rows):
    """Compile everything on random tokens, then go back as if nothing had been."""
    try:
        for _ in range(2):
            noise = torch.randint(V, (rows, T), device=run.device)
            for _ in range(max(1, TOTAL_BATCH // (rows * T))):
                learn(noise, noise)
            step(0.0)
        torch.cuda.synchronize()
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(model.parameters()), starts)
        adam.state.clear()
        muon.forget(), model.memory.forget()
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()


if cuda:  # before the clock
    starts = [p.detach().clone() for p in model.parameters()]
    rows, passes = fitted(rows, passes, warm_up)
    del starts
gc.collect(), gc.freeze(), gc.disable()  # a collection costs half a second

underway = collections.deque()  # passes the GPU has not finished: (event, loss on its way to the host)
for done, (x, y) in enumerate(run.batches(rows, T), 1):  # the first touch starts the clock
    model.memory.again = run.tokens_seen > len(run.tokens)
    loss = learn(x, y)
    if done % passes == 0:
        step(run.progress)
    if cuda:  # the GPU always has a pass waiting, nobody waits for the GPU, and the clock means what it says
        shown = torch.empty((), pin_memory=True).copy_(loss, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        underway.append((event, shown))
        if len(underway) > 2:
            event, shown = underway.popleft()
            event.synchronize()
            run.report(shown.item())
    else:
        run.report(loss.item())
run.report(loss.item())
run.submit(
    model, depth=DEPTH, width=WIDTH, heads=HEADS, short_window=WINDOWS["S"], batch=passes * rows * T, rows=rows,
    attention=", ".join(f"{kind} {name}" for kind, (name, _) in sorted(CHOSEN.items())), flops_per_token=flops_per_token(),
)
