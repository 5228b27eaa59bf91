"""Broken and sound edits of the flagship's train.py, as language models make them.

Data for `proposing.py` and the tests of preflight; not a benchmark by itself.

Each edit is (name, (search, replace), ...), applied one after the other. A broken edit
ends a run without a score, or with one that is refused. A sound edit gets a score, good
idea or not. All were written by hand, after crashes in published sessions and in ours.

There are two sets, each for the flagship of its day (`fixtures/`). The first is by the
author of preflight; the author of the second had not read how a dry run checks, so its
catch rate says more.
"""

import tomllib
from pathlib import Path

from autoresearch.commands import new
from autoresearch.lab import constants
from autoresearch.lab.reply_parser import EditBlock, ParsedReply, apply_edits

FIXTURES = Path(__file__).parent / "fixtures"

BEGIN = "run = prepare.begin(build_model)"
FORWARD = "        x = x + self.attention(norm(x), ids, cos, sin)"
MLP = "        return self.down(F.relu(self.up(x)).square())"
HEAD = "        logits = self.head(norm(x)).float()"
SOFT = "        return SOFTCAP * torch.tanh(logits / SOFTCAP)"
UPDOWN = (
    "        self.up, self.down = Linear(WIDTH, MLP_RATIO * WIDTH), "
    "Linear(MLP_RATIO * WIDTH, WIDTH)"
)
QKV = "        q, k = (norm(rotate(y, cos, sin)) * QK_SCALE for y in (q, k))"
CAUSAL = (
    "        return F.scaled_dot_product_attention(q, k, v, is_causal=True)\n"
    "    return F.scaled_dot_product_attention(q, k, v, attn_mask=band(length, window, "
    "q.device))"
)
BAND = "    return (ago >= 0) & (ago < window)"
ADAM = (
    "adam = torch.optim.AdamW(adam_groups, lr=0.0, betas=(BETA1, BETA2), eps=1e-10, "
    "fused=cuda)"
)
STEP = "    adam.step()"
LOSS = "    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())"
LOOP = "for x, y in run.batches(rows, T):  # the first touch starts the clock"
BACK = "    (loss / passes).backward()"
SUBMIT = "run.submit("
X0 = "        self.x0 = nn.Parameter(torch.full((DEPTH,), X0_INIT))"
EMBED = "        x = x0 = norm(self.embed(ids).to(half))"
GROUPS = (
    '        {"params": [*gates, model.residual, model.x0], "base": SCALAR_LR, '
    '"weight_decay": 0.0},'
)
BUFFERS = '        self.register_buffer("cos", turns.cos(), persistent=False)'

BROKEN = (
    # -- names and syntax that only running finds
    ("misspelt function", (MLP, MLP.replace("F.relu", "F.relu_squared"))),
    ("misspelt constant", (SOFT, SOFT.replace("SOFTCAP *", "SOFT_CAP *"))),
    ("import missing", (MLP, "        return self.down(einops.rearrange(self.up(x)))")),
    ("package absent", ("import prepare\n", "import prepare\nimport flash_attn\n")),
    ("removed what is used", ("def norm(x):", "def normalise(x):")),
    ("attribute not made", (MLP, MLP.replace("self.up(x)", "self.gate(x)"))),
    ("name error after warm-up", (STEP, STEP + "\n    ema.update(model)")),
    ("method not there", (STEP, STEP + "\n    adam.zero_grads()")),
    ("argument not there", (ADAM, ADAM.replace("eps=1e-10", "eps=1e-10, nesterov=True"))),
    ("local before set", (LOOP, "seen += 1\n" + LOOP)),
    ("none is called", (LOSS, LOSS.replace("model(x)", "model(x)[0](x)"))),
    # -- shapes
    ("up without gate half", (UPDOWN, UPDOWN.replace("Linear(WIDTH, MLP", "Linear(WIDTH, 2 * MLP"))),
    ("gated MLP, down too wide", (UPDOWN, UPDOWN.replace("Linear(WIDTH, MLP", "Linear(WIDTH, 2 * MLP")),
     (MLP, "        a, b = self.up(x).chunk(2, dim=-1)\n        return self.down(torch.cat((F.silu(a) * b, b), dim=-1))")),
    ("heads do not divide", ("HEADS = WIDTH // HEAD_SIZE", "HEADS = WIDTH // HEAD_SIZE + 1")),
    ("grouped keys, not repeated", ("        self.q, self.k, self.v, self.out = (Linear(WIDTH, WIDTH) for _ in range(4))",
     "        self.q, self.out = Linear(WIDTH, WIDTH), Linear(WIDTH, WIDTH)\n        self.k, self.v = Linear(WIDTH, WIDTH // 2), Linear(WIDTH, WIDTH // 2)")),
    ("concat instead of add", (FORWARD, FORWARD.replace("x + self.attention(norm(x), ids, cos, sin)", "torch.cat((x, self.attention(norm(x), ids, cos, sin)), -1)"))),
    ("scale of the wrong length", (X0, X0.replace("(DEPTH,)", "(DEPTH - 1,)"))),
    ("width minus one", ("WIDTH = math.ceil", "WIDTH = -1 + math.ceil")),
    ("gate wider than the model", (
        "        self.gate = Linear(min(GATE_CHANNELS, WIDTH), HEADS) if has_values(layer) else None",
        "        self.gate = Linear(2 * WIDTH, HEADS) if has_values(layer) else None")),
    ("bigram table too small", (EMBED, "        x = x0 = norm((self.embed(ids) + self.embed(ids * V)).to(half))")),
    ("norm over the wrong size", ("    return F.rms_norm(x, (x.shape[-1],))", "    return F.rms_norm(x, (WIDTH,))")),
    ("loss without flatten", (LOSS, "    return F.cross_entropy(model(x), y)")),
    ("head to half the vocabulary", ("        self.head = Linear(WIDTH, V)", "        self.head = Linear(WIDTH, V // 2)")),
    ("logits of the last token only", (SOFT, SOFT + "[:, -1]")),
    ("logits in a tuple", (SOFT, "        return SOFTCAP * torch.tanh(logits / SOFTCAP), x")),
    # -- not causal
    ("attention sees everything", (CAUSAL, CAUSAL.replace("is_causal=True", "is_causal=False"))),
    ("window the wrong way round", (BAND, "    return (ago <= 0) & (-ago < window)")),
    ("window off by one", (BAND, "    return (ago >= -1) & (ago < window)")),
    ("mean over the sequence", (FORWARD, FORWARD + "\n        x = x + 0.1 * x.mean(dim=1, keepdim=True)")),
    ("shifted the wrong way", (EMBED, EMBED + "\n        x = x + 0.1 * torch.roll(x, -1, dims=1)")),
    ("normalised over time", (HEAD, "        x = x / (x.std(dim=1, keepdim=True) + 1e-5)\n" + HEAD)),
    ("a convolution that looks ahead", (
        UPDOWN, UPDOWN + "\n        self.mix = nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)"),
        (MLP, "        x = x + self.mix(x.transpose(1, 2)).transpose(1, 2)\n" + MLP)),
    ("batch norm across rows",
     (MLP, "        x = (x - x.mean(dim=(0, 1))) / (1e-3 + x.std(dim=(0, 1)))\n" + MLP)),
    # -- the contract
    ("no submit", (SUBMIT, "print(")),
    ("no begin", (BEGIN, "class run: device = 'cpu'")),
    ("begin takes the model", (BEGIN, "run = prepare.begin(build_model())")),
    ("submits early", (LOOP, LOOP + "\n    if done >= 3:\n        break")),
    ("never looks at progress", (LOOP, "import itertools\nstuck = next(run.batches(rows, T))\nfor x, y in itertools.repeat(stuck):")),
    ("submits another model", ("    model, depth=DEPTH", "    nn.Sequential(model, nn.Identity()), depth=DEPTH")),
    ("a parameter made after building", (BEGIN, BEGIN), ("matrices, adam_groups = groups_of(model)",
     "model.extra = nn.Parameter(torch.zeros(3))\nmatrices, adam_groups = groups_of(model)")),
    ("state outside the weights", (SOFT, "        self.calls = getattr(self, 'calls', 0) + 1\n        return SOFTCAP * torch.tanh(logits / SOFTCAP) * (1 + 0.2 * min(self.calls, 3))")),
    ("reads the data as a file", (LOOP, "import numpy as np\nwhole = np.load('train.npy')\n" + LOOP)),
    # -- training
    ("frozen by detach", (LOSS, "    return F.cross_entropy(model(x).detach().flatten(0, 1), y.flatten())")),
    ("gradient in place", (FORWARD, "        y = self.attention(norm(x), ids, cos, sin)\n        x = x + y * y.exp_()\n        y.zero_()")),
    ("log of what is negative", (MLP, "        return self.down(torch.log(self.up(x)))")),
    ("divides by nothing", (HEAD, HEAD + "\n        logits = logits / (logits - logits)")),
    ("rates of a million", ("def rate_at(progress):", "def rate_at(progress):\n    return 1e30")),
    ("a parameter stepped twice", (GROUPS, GROUPS + '\n        {"params": values, "base": SCALAR_LR, "weight_decay": 0.0},')),
    ("a parameter nobody made", (GROUPS, GROUPS.replace("model.x0]", "model.x0, model.skip]"))),
    ("integer parameter", (X0, "        self.x0 = nn.Parameter(torch.zeros(DEPTH, dtype=torch.int64))")),
    ("wrong device of a mask", (BAND, "    return ((ago >= 0) & (ago < window)).to('cuda')")),
    # -- memory
    ("depth that cannot fit", ("DEPTH = 9", "DEPTH = 400")),
    ("width that cannot fit", ("ASPECT = 64", "ASPECT = 900")),
)  # fmt: skip

SOUND_CODE = (
    ("gelu", (MLP, "        return self.down(F.gelu(self.up(x)))")),
    ("gated MLP", (UPDOWN, UPDOWN.replace("Linear(WIDTH, MLP", "Linear(WIDTH, 2 * MLP")),
     (MLP, "        a, b = self.up(x).chunk(2, dim=-1)\n        return self.down(F.silu(a) * b)")),
    ("no softcap", (SOFT, "        return logits")),
    ("shift by one, causal", (EMBED, EMBED + "\n        x = x + 0.1 * F.pad(x[:, :-1], (0, 0, 1, 0))")),
    ("causal mean", (FORWARD, FORWARD + "\n        x = x + 0.01 * x.cumsum(dim=1) / torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]")),
    ("causal convolution", (UPDOWN, UPDOWN + "\n        self.mix = nn.Conv1d(WIDTH, WIDTH, 3, groups=WIDTH)"),
     (MLP, "        x = x + self.mix(F.pad(x, (0, 0, 2, 0)).transpose(1, 2)).transpose(1, 2)\n" + MLP),
     ("    apart = {id(p) for p in gates + values}", "    apart = {id(p) for p in gates + values} | {id(p) for b in model.blocks for p in b.mlp.mix.parameters()}"),
     (GROUPS, GROUPS + '\n        {"params": [p for b in model.blocks for p in b.mlp.mix.parameters()], "base": SCALAR_LR, "weight_decay": 0.0},')),
    ("all layers long", ("    T if i == DEPTH - 1", "    T if True or i == DEPTH - 1")),
    ("square dims by hand", (QKV, QKV + "\n        q = q * 1.0")),
    ("clip gradients", (STEP, "    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)\n" + STEP)),
    ("label smoothing", (LOSS, LOSS.replace("y.flatten())", "y.flatten(), label_smoothing=0.05)"))),
    ("learned softcap", (X0, X0 + "\n        self.cap = nn.Parameter(torch.tensor(15.0))"),
     (SOFT, "        return self.cap * torch.tanh(logits / self.cap)"), (GROUPS, GROUPS.replace("model.x0]", "model.x0, model.cap]"))),
    ("tied embeddings", (HEAD, "        logits = F.linear(norm(x), self.embed.weight.to(x.dtype)).float() + 0.0 * self.head(norm(x)).float()")),
    ("cosine schedule", ("    left = min(1.0, (1 - progress) / WARMDOWN) if WARMDOWN else 1.0", "    left = 0.5 * (1 + math.cos(math.pi * progress))")),
    ("plain Adam", (ADAM, ADAM.replace("AdamW", "Adam"))),
    ("z-loss", (LOSS, "    logits = model(x).flatten(0, 1)\n    return F.cross_entropy(logits, y.flatten()) + 1e-4 * logits.logsumexp(-1).square().mean()")),
    ("buffer kept", (BUFFERS, BUFFERS.replace("persistent=False", "persistent=True"))),
    ("average of weights", (LOOP, "ema = [p.detach().clone() for p in model.parameters()]\n" + LOOP),
     (BACK, BACK + "\n    with torch.no_grad():\n        torch._foreach_lerp_(ema, list(model.parameters()), 0.01)"),
     (SUBMIT, "with torch.no_grad():\n    torch._foreach_copy_(list(model.parameters()), ema)\n" + SUBMIT)),
    ("a learned scale, stepped by Muon", ("    apart = {id(p) for p in gates + values}", "    apart = {id(p) for p in values}"),
     ("        self.attention, self.mlp = Attention(layer), MLP()", "        self.attention, self.mlp = Attention(layer), MLP()\n        self.scale = nn.Parameter(torch.ones(WIDTH))"),
     (FORWARD, "        x = x + self.scale * self.attention(norm(x), ids, cos, sin)")),
    ("tokens read by hand", (LOOP, "import numpy as np\nrng = np.random.default_rng(run.seed)\n\n\ndef drawn():\n    while run.progress < 1:\n        at = rng.integers(0, len(run.tokens) - T - 1, rows)\n        cut = np.stack([run.tokens[a : a + T + 1] for a in at]).astype(np.int64)\n        run.spent(rows * T)\n        both = torch.from_numpy(cut).to(run.device)\n        yield both[:, :-1], both[:, 1:]\n\n\nfor x, y in drawn():")),
)  # fmt: skip

# The second set, for the flagship of 2026-11-25: written from the file and from what
# language models get wrong, without knowledge of how a dry run checks.
LATER_BROKEN = (
    # -- names from another script, and files that are not whole
    ("a schedule from another script", ("    left = min(1.0, (1 - progress) / WARMDOWN) if WARMDOWN else 1.0",
     "    left = 0.5 * (1 + math.cos(math.pi * min(1.0, it / lr_decay_iters)))")),
    ("rest unchanged", ("    momentum.lerp_(g, 1 - beta)\n    update = orthogonalise(g.lerp(momentum, beta))",
     "    # ... (unchanged)")),
    ("copy was never imported", ("gc.collect(), gc.freeze(), gc.disable()", "ema = copy.deepcopy(model)\ngc.collect(), gc.freeze(), gc.disable()"),
     ("    model, depth=DEPTH, width=WIDTH,", "    ema, depth=DEPTH, width=WIDTH,")),
    ("a window nobody defined", ("KINDS = [WINDOW_PATTERN[i % len(WINDOW_PATTERN)] for i in range(DEPTH - 1)]", 'KINDS = ["SMSL"[i % 4] for i in range(DEPTH - 1)]')),
    # -- shapes
    ("SwiGLU, down left as it was", ("            x = x + F.relu(norm(x) @ up[i].mT).square() @ down[i]",
     "            a, b = (norm(x) @ up[i].mT).chunk(2, dim=-1)\n            x = x + (F.silu(a) * b) @ down[i]")),
    ("fewer keys, view left as it was", ("        self.attend = uniform(DEPTH, 4, WIDTH, WIDTH)",
     "        self.keys = uniform(DEPTH, 2, WIDTH // 2, WIDTH)\n        self.attend = uniform(DEPTH, 2, WIDTH, WIDTH)"),
     ("            self.attend[:, 3].zero_()", "            self.attend[:, 1].zero_()"), ("@ weights[3].mT", "@ weights[1].mT")),
    ("rows longer than the angles", ("for done, (x, y) in enumerate(run.batches(rows, T), 1):", "for done, (x, y) in enumerate(run.batches(max(1, rows // 2), 2 * T), 1):")),
    ("columns' variance where rows' is kept", ("    variance.lerp_(update.square().mean(dim=-1, keepdim=True), 1 - VARIANCE_BETA)",
     "    variance.lerp_(update.square().mean(dim=-2, keepdim=True), 1 - VARIANCE_BETA)")),
    ("first layer's values before there are any", ("    def look(self, layer, x, weights, table, ids):", "    first = None\n\n    def look(self, layer, x, weights, table, ids):"),
     ("        cos, sin = self.cos[:t].to(x.dtype), self.sin[:t].to(x.dtype)", "        v = 0.5 * v + 0.5 * self.first\n        cos, sin = self.cos[:t].to(x.dtype), self.sin[:t].to(x.dtype)")),
    # -- arithmetic
    ("warm-up of nothing", ("    if progress < WARMUP:\n        return progress / WARMUP", "    warm = min(1.0, progress / WARMUP)"),
     ("    return FINAL_LR + (1 - FINAL_LR) * left", "    return warm * (FINAL_LR + (1 - FINAL_LR) * left)")),
    ("batches that grow from nothing", ("    if done % passes == 0:", "    if done % int(passes * min(1.0, 2 * run.progress)) == 0:")),
    ("norm of nothing", ("            x = x + F.relu(norm(x) @ up[i].mT).square() @ down[i]",
     "            y = F.relu(norm(x) @ up[i].mT).square() @ down[i]\n            x = x + y / y.norm(dim=-1, keepdim=True)")),
    ("weights normalised in place", ("    adam.step()", "    adam.step()\n    model.attend /= model.attend.norm(dim=-1, keepdim=True)\n")),
    # -- parameters and optimisers
    ("a tied head, in two groups", ("        self.head = normal(HEAD_INIT, V, WIDTH)", "        self.head = self.embed")),
    ("a stack without a gradient", ("        x = x0 = norm(self.embedded(ids).to(half))", "        x = x0 = norm(self.embedded(ids).to(half))\n        up = [u.detach() for u in up]")),
    # -- what the evaluator finds
    ("dropout while it serves", ("        x = x0 = norm(self.embedded(ids).to(half))", "        x = x0 = F.dropout(norm(self.embedded(ids).to(half)), 0.1)")),
    ("a shift from the future", ("        x = x0 = norm(self.embedded(ids).to(half))",
     "        x = norm(self.embedded(ids).to(half))\n        x = x0 = x + 0.3 * (torch.cat((x[:, 1:], x[:, -1:]), dim=1) - x)")),
    ("experts choose their tokens", ("        self.head = normal(HEAD_INIT, V, WIDTH)", "        self.router = normal(0.02, DEPTH, WIDTH)\n        self.head = normal(HEAD_INIT, V, WIDTH)"),
     ("            x = x + F.relu(norm(x) @ up[i].mT).square() @ down[i]",
      "            score = norm(x) @ self.router[i].to(half)\n            chosen = score >= score.topk(max(1, score.shape[1] // 2), dim=1).values[:, -1:]\n"
      "            x = x + (torch.sigmoid(score) * chosen)[..., None] * (F.relu(norm(x) @ up[i].mT).square() @ down[i])"),
     ("[model.gates, model.residual, model.x0]", "[model.gates, model.residual, model.x0, model.router]")),
    ("the last position's logits are dropped", ("        return (SOFTCAP * torch.tanh(logits / SOFTCAP)).view(*ids.shape, V)",
     "        return (SOFTCAP * torch.tanh(logits / SOFTCAP)).view(*ids.shape, V)[:, :-1]")),
    ("a tensor among the facts", ("    model, depth=DEPTH, width=WIDTH,", "    model, depth=DEPTH, final_loss=loss, width=WIDTH,")),
    # -- the card
    ("positions indexed on the host", ("        self.head = normal(HEAD_INIT, V, WIDTH)", "        self.places = normal(0.02, T, WIDTH)\n        self.head = normal(HEAD_INIT, V, WIDTH)"),
     ("        x = x0 = norm(self.embedded(ids).to(half))", "        places = F.embedding(torch.arange(ids.shape[1]), self.places)\n        x = x0 = norm((self.embedded(ids) + places).to(half))"),
     ("[model.gates, model.residual, model.x0]", "[model.gates, model.residual, model.x0, model.places]")),
    ("a table of all pairs of tokens", ("torch.zeros(NGRAM_ROWS * V, WIDTH)", "torch.zeros(V * V, WIDTH)"), ("            key = (key * 40503 ^ last * 30011) % 2**31", "            key = key * V + last")),
)  # fmt: skip

LATER_SOUND = (
    ("SwiGLU", ("        self.up = uniform(DEPTH, MLP_RATIO * WIDTH, WIDTH)", "        self.up = uniform(DEPTH, 2 * MLP_RATIO * WIDTH, WIDTH)"),
     ("            x = x + F.relu(norm(x) @ up[i].mT).square() @ down[i]",
      "            a, b = (norm(x) @ up[i].mT).chunk(2, dim=-1)\n            x = x + (F.silu(a) * b) @ down[i]")),
    ("short rows first", ("for done, (x, y) in enumerate(run.batches(rows, T), 1):", "for done, (x, y) in enumerate(run.batches(2 * rows, T // 2), 1):")),
    ("clipped gradients", ("    adam.step()", "    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)\n    adam.step()\n")),
    ("a scale that nobody steps", ("        self.head = normal(HEAD_INIT, V, WIDTH)", "        self.sharp = nn.Parameter(torch.ones(DEPTH))\n        self.head = normal(HEAD_INIT, V, WIDTH)"),
     ("* QK_SCALE for y in (q, k))", "* QK_SCALE * self.sharp[layer] for y in (q, k))")),
    ("learned positions", ("        self.head = normal(HEAD_INIT, V, WIDTH)", "        self.places = normal(0.02, T, WIDTH)\n        self.head = normal(HEAD_INIT, V, WIDTH)"),
     ("        x = x0 = norm(self.embedded(ids).to(half))", "        x = x0 = norm((self.embedded(ids) + self.places[: ids.shape[1]]).to(half))"),
     ("[model.gates, model.residual, model.x0]", "[model.gates, model.residual, model.x0, model.places]")),
    ("batches that grow", ("    if done % passes == 0:", "    if done % max(1, int(passes * min(1.0, 2 * run.progress))) == 0:")),
    ("a mean of the weights", ("gc.collect(), gc.freeze(), gc.disable()", "import copy\nmean = copy.deepcopy(model)\ngc.collect(), gc.freeze(), gc.disable()"),
     ("    if done % passes == 0:", "    with torch.no_grad():\n        torch._foreach_lerp_(list(mean.parameters()), list(model.parameters()), 0.02)\n    if done % passes == 0:"),
     ("    model, depth=DEPTH, width=WIDTH,", "    mean, depth=DEPTH, width=WIDTH,")),
    ("no late keys", ('        if KINDS[layer] == "L":', '        if False and KINDS[layer] == "L":')),
    ("a running mean of the past", ("        x = x0 = norm(self.embedded(ids).to(half))",
     "        x = norm(self.embedded(ids).to(half))\n        x = x0 = x + 0.1 * x.cumsum(dim=1) / torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]")),
    ("experts by token", ("        self.head = normal(HEAD_INIT, V, WIDTH)", "        self.router = normal(0.02, DEPTH, 4, WIDTH)\n        self.head = normal(HEAD_INIT, V, WIDTH)"),
     ("            x = x + F.relu(norm(x) @ up[i].mT).square() @ down[i]",
      "            share = torch.softmax(norm(x) @ self.router[i].to(half).mT, dim=-1)\n"
      "            x = x + share.amax(-1, keepdim=True) * (F.relu(norm(x) @ up[i].mT).square() @ down[i])"),
     ("[model.gates, model.residual, model.x0]", "[model.gates, model.residual, model.x0, model.router]")),
)  # fmt: skip


def flagship(profile, later=False):
    """The train.py that a set of edits was written for, in the size of a profile.

    An old copy: the edits would not fit the shipped train.py, which goes on changing.
    """
    day = "2026_11_25" if later else "2026_11_23"
    source = (FIXTURES / f"train_{day}.py").read_text()
    profiles = tomllib.loads((FIXTURES / f"profiles_{day}.toml").read_text())
    for name, value in profiles[profile].items():
        source = new.replace_literal(source, name, value)
    return source


def edited(source, edit):
    """The file with one edit made; raises when it does not fit."""
    name, *pairs = edit
    blocks = []
    for search, replace in pairs:
        lines = [line for line in source.split("\n") if search.strip("\n") in line]
        if "\n" not in search.strip("\n") and lines and search.strip("\n") not in lines:
            replace = lines[0].replace(search, replace)  # part of a line
            search = lines[0]
        blocks.append(EditBlock(search.strip("\n"), replace.strip("\n")))
    return name, apply_edits(ParsedReply(name, "", None, tuple(blocks), ""), source)


def broken(source):
    """(name, train.py) of every broken edit."""
    return [edited(source, edit) for edit in BROKEN]


def later(source, edits):
    """(name, train.py) of the edits of one of the two later lists."""
    return [edited(source, edit) for edit in edits]


def sound(source):
    """(name, train.py) of sound edits: of code, and each constant low, mid and high."""
    found = [edited(source, edit) for edit in SOUND_CODE]
    for knob in constants.parse_constants(source):
        if knob.is_fixed:
            continue
        if knob.choices:
            values = list(knob.choices)
        else:
            middle = (
                (knob.low * knob.high) ** 0.5
                if knob.is_log_scale
                else (knob.low + knob.high) / 2
            )
            whole = isinstance(knob.value, int)
            values = [round(v) if whole else v for v in (knob.low, middle, knob.high)]
            if "**" in knob.spelling:
                values = [knob.low, knob.value * 2, knob.value // 2]
        for value in dict.fromkeys(values):
            text = constants.replace_constants(source, {knob.name: value})
            if text != source:
                found.append((f"{knob.name} = {value}", text))
    return found


def broken_for(source, names):
    """(name, train.py) of the broken edits with these names."""
    return [edited(source, edit) for edit in BROKEN if edit[0] in names]
