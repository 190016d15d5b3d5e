"""What training costs in memory and in operations: one walk through the forward pass, in the order it is computed.

The walk knows at each step whether a trained parameter stands before it. That decides what the backward pass needs:

    y = x W^T          forward   2 N d_in d_out operations (N rows; a multiplication and an addition each)
    dx = g W           as many, if a trained parameter stands before this layer
    dW = g^T x         as many, if W itself is trained; and only then must x be kept

So full training costs three forward passes (Kaplan et al. 2020, section 2.1), LoRA little more than two, and what LoRA
stores is what the nonlinear steps and its own A need. Only matrix products are counted as operations, as Kaplan et al.
do; softmax, norms and biases are a few per cent of them. Attention is counted in full, 4 T S D a head, although half
of its scores are masked. Activations follow Korthikanti et al. 2022, "Reducing activation recomputation", section 4.1.
"""

from dataclasses import dataclass, field

from ..autograd.attend import QUERIES
from ..autograd.head import LOGITS
from ..nn.architectures import parameters, size
from .methods import Plan


@dataclass(frozen=True)
class Engine:
    """What a training program keeps for the backward pass, beside the inputs of trained matrices.

    activation: arrays as wide as the MLP that its nonlinearity keeps. scores: whether attention keeps its (T, S)
    weights; FlashAttention computes them again, from one number a row and its output (Dao et al. 2022). outputs:
    whether attention keeps its output beside the copy that the next matrix reads. workspace: arrays as wide as the MLP
    that are in use at one time, at the peak, while the backward pass goes through the last block. shared: whether a
    decoder's prompt goes through the blocks once for the whole batch, up to the keys and values that the text sees (it
    never sees the text, so they are the same in every row), or in front of every text and through the head, as in PEFT;
    an encoder's, which sees the text, goes through the blocks in front of it, and in PEFT through a masked head.
    queries: how many of a text a decoder's attention takes at a time, without the weights that are zero for all of
    them; 0 is all. logits: of how many the loss keeps the probabilities, where of more it keeps the gradient of its
    input; 0 is of any.
    """

    activation: float = 1
    scores: bool = True
    outputs: bool = False
    workspace: float = 0
    shared: bool = False
    queries: int = 0
    logits: int = 0


PYTORCH = Engine()  # the reckoning of Korthikanti et al.
FLASH = Engine(scores=False, outputs=True)
# gelu keeps its slope; what arrives at its output, and what it makes of that, are two arrays
MINILORA = Engine(outputs=True, workspace=2, shared=True, queries=QUERIES, logits=LOGITS)
ENGINES = {"pytorch": PYTORCH, "flash": FLASH, "minilora": MINILORA}


@dataclass(frozen=True)
class Operation:
    """One step of the forward pass: its operations, and those of its part of the backward pass."""

    name: str
    forward: int
    backward: int


@dataclass
class Walk:
    """A forward pass over `batch` texts of `length` tokens: its operations, and the numbers kept for the way back.

    kept: {name: how many numbers}. Where several steps need the same array (q, k and v all read the normed input), it
    stands there once. logits: how many the loss is of. A masked head is counted for every token, masked or not.
    """

    plan: Plan
    batch: int
    length: int
    engine: Engine = PYTORCH
    operations: list[Operation] = field(default_factory=list)
    kept: dict[str, int] = field(default_factory=dict)
    live: bool = False  # does a trained parameter stand before this point?
    logits: int = 0

    def __post_init__(self) -> None:
        self.modules = {name.rpartition(".")[0] for name in self.plan.trainable}
        self.prompt = self.plan.added.get("front.prompt", (0,))[0]
        self.shared = self.engine.shared and self.plan.architecture.causal
        self.rows = self.batch * self.length + self.prompt * (1 if self.shared else self.batch)
        for i in range(self.plan.architecture.layers + 1):
            if i == 0:
                self._embed()
                embedded = self.live
            else:
                self._block(f"blocks.{i - 1}")
            if i == 1 and self.plan.architecture.conv_kernel:
                self._convolution(embedded)
        self._finish()

    @property
    def forward(self) -> int:
        """Floating-point operations of one forward pass."""
        return sum(o.forward for o in self.operations)

    @property
    def training(self) -> int:
        """Floating-point operations of a forward and a backward pass; the update is negligible beside them."""
        return sum(o.forward + o.backward for o in self.operations)

    def _trains(self, module: str) -> bool:
        return module in self.modules

    def _keep(self, name: str, numbers: int, needed: bool = True) -> None:
        if needed:
            self.kept[name] = numbers

    def _embed(self) -> None:
        if side := self.plan.architecture.patch:  # each becomes a token; the class token is one already
            tokens, self.rows = self.rows, self.rows - self.batch
            self.live = self._linear("patch_proj", (self.plan.architecture.width, side), "patches")
            self.rows = tokens
        self.live = self.live or self.prompt > 0 or any(self._trains(table) for table in ("wte", "wpe", "token_types"))
        if rank := self.plan.added.get("wte.lora_A", (0,))[0]:  # h is looked up, and h B^T a product
            products = 2 * self.rows * rank * self.plan.architecture.width
            self.operations.append(Operation("wte.lora", products, 2 * products))
            self._keep("wte.h", self.rows * rank)
        if self.plan.architecture.embedding_norm:
            self._norm("ln_embedding")

    def _norm(self, name: str) -> None:
        """Keeps the normed rows, and one factor a row, where x or w gets a gradient; a bias needs neither."""
        w, plan = f"{name}.weight", self.plan
        numbers = self.rows * (plan.architecture.width + 1)
        self._keep(f"{name}.normed", numbers, self.live or w in plan.trained or w in plan.added)
        self.live = self.live or self._trains(name)

    def _linear(self, name: str, shape: tuple[int, ...], x: str) -> bool:
        """One matrix, with LoRA or DoRA if it has them; -> whether its output is live. x: the name of its input."""
        (d_out, d_in), n, plan = shape[:2], self.rows, self.plan
        products, trained = 2 * n * d_out * d_in, f"{name}.weight" in plan.trained
        self.operations.append(Operation(name, products, products * (self.live + trained)))
        rank = plan.added.get(f"{name}.lora_A", (0,))[0] if name != "wte" else 0  # a tied head keeps W
        self._keep(x, n * d_in, trained or rank > 0)
        self._beside(name, d_out, d_in)
        if rank:
            down, up = 2 * n * rank * d_in, 2 * n * rank * d_out  # h = x A^T and h B^T
            self.operations.append(Operation(f"{name}.lora", down + up, down * (1 + self.live) + 2 * up))
            self._keep(f"{name}.h", n * rank)
        if f"{name}.magnitude" in plan.added:  # the norm of each row of W + s B A, a constant in the backward pass
            self.operations.append(Operation(f"{name}.norm", 2 * rank * d_in * d_out + 2 * d_in * d_out, 0))
            self._keep(f"{name}.direction", n * d_out)
        return self.live or self._trains(name)

    def _beside(self, name: str, d_out: int, d_in: int) -> None:
        """LoRA-FA, VeRA, MiSS and IA3, of which no A is trained: nothing needs the layer's input but IA3 in front."""
        added, n = self.plan.added, self.rows
        r = self.plan.frozen.get(f"{name}.lora_A", added.get(f"{name}.vera_d", added.get(f"{name}.miss_D", (0,))))[0]
        pieces = f"{name}.miss_D" in added  # h is a sum of pieces of x, and no product
        down, up = 0 if pieces else 2 * n * r * d_in, 2 * n * r * d_out
        if r:
            trained = f"{name}.vera_d" not in added  # B, or D; of VeRA no matrix is
            backward = up * trained + (up if self.live or not trained else 0) + down * self.live
            self.operations.append(Operation(f"{name}.{'miss' if pieces else 'lora'}", down + up, backward))
            self._keep(f"{name}.h", n * r)
        if f"{name}.vera_d" in added:
            self._keep(f"{name}.out", n * d_out)  # what v stretches
        self._keep(f"{name}.stretched", n * added.get(f"{name}.ia3_l", (0,))[0], f"{name}.ia3_l" in added)

    def _attention(self, block: str) -> None:
        a, n, plan = self.plan.architecture, self.rows, self.plan
        matrices = {name: shape for name, shape in a.matrices.items() if name != "attn.o_proj"}
        live = [
            self._linear(f"{block}.{m}", s, f"{block}.ln_1.out") for m, s in matrices.items() if m.startswith("attn")
        ]
        prefix = plan.virtual - self.prompt
        self.live = any(live) or prefix > 0
        keys = self.length + self.prompt + prefix
        alone = self.prompt if self.shared else 0  # rows of a prompt that sees only itself, and no text
        scores = a.heads * (n * keys - alone * self.length)
        products = 2 * (2 * scores * a.dim)  # q k^T, and the weights times v
        self.operations.append(Operation(f"{block}.attn", products, 2 * products * self.live))
        if a.relative_positions:
            self._relative(block)
        self._keep(f"{block}.q", n * a.heads * a.dim, self.live)
        self._keep(f"{block}.kv", 2 * (self.batch * keys + alone) * a.key_value_heads * a.dim, self.live)
        kept = scores - a.heads * self.batch * _left_out(self.length, self.engine.queries if a.causal else 0)
        self._keep(f"{block}.scores", kept, self.live and self.engine.scores)
        self._keep(f"{block}.sums", n * a.heads, self.live and not self.engine.scores)
        self._keep(f"{block}.o", n * a.heads * a.dim, self.live and self.engine.outputs)
        self.live = self._linear(f"{block}.attn.o_proj", a.matrices["attn.o_proj"], f"{block}.attn.out")

    def _relative(self, block: str) -> None:
        """DeBERTa: two more score matrices, between content and a table of distances that W_q and W_k project."""
        a, plan = self.plan.architecture, self.plan
        c, r = a.width, a.relative_positions
        table = self._trains("relative") or self._trains("ln_relative")
        for name in (f"{block}.attn.q_proj", f"{block}.attn.k_proj"):
            rank = plan.added.get(f"{name}.lora_A", (0,))[0]
            project, scores = 2 * r * c * c, 2 * self.rows * r * c
            low = 2 * r * rank * c  # x A^T, and as much h B^T
            self.live = self.live or table
            backward = project * (table + (f"{name}.weight" in plan.trained)) + low * (3 + table)
            self.operations.append(
                Operation(f"{name}.relative", project + 2 * low + scores, backward + 2 * scores * self.live)
            )

    def _mlp(self, block: str) -> None:
        a, n = self.plan.architecture, self.rows
        into = [name for name in ("mlp.gate_proj", "mlp.up_proj") if name in a.matrices]
        self.live = any([self._linear(f"{block}.{name}", a.matrices[name], f"{block}.ln_2.out") for name in into])
        inside = n * a.mlp_width
        self._keep(f"{block}.mlp.inside", int(self.engine.activation * inside), self.live)
        self._keep(f"{block}.mlp.gated", 2 * inside, self.live and a.gated)  # act(gate) and up: factors of a product
        self.live = self._linear(f"{block}.mlp.down_proj", a.matrices["mlp.down_proj"], f"{block}.mlp.act")

    def _adapter(self, place: str) -> None:
        """A bottleneck: down, a nonlinearity, up; both matrices are trained."""
        shapes = {name: self.plan.added.get(f"{place}.{name}.weight", (0, 0)) for name in ("down", "up")}
        if shapes["down"][0] == 0:
            return
        if f"{place}.norm.weight" in self.plan.added:
            self._norm(f"{place}.norm")
        for name, shape in shapes.items():
            products = 2 * self.rows * shape[0] * shape[1]
            self.operations.append(Operation(f"{place}.{name}", products, products * (1 + self.live)))
            self._keep(f"{place}.{name}.in", self.rows * shape[1])
            self.live = True
        self._keep(f"{place}.inside", int(self.engine.activation * self.rows * shapes["down"][0]))

    def _block(self, block: str) -> None:
        """The residual stream goes past each part: what was live before it stays live after it.

        A decoder norms what a part reads, an encoder, which ends without a norm, what a part has added to.
        """
        first = self.plan.architecture.final_norm
        for part, norm, through in (("attn", "ln_1", self._attention), ("mlp", "ln_2", self._mlp)):
            if first:
                self._norm(f"{block}.{norm}")
            through(block)
            self._adapter(f"{block}.{part}.adapter")
            if not first:
                self._norm(f"{block}.{norm}")

    def _convolution(self, embedded: bool) -> None:
        """DeBERTa's: over the embeddings, added to what leaves the first block, and normed."""
        a = self.plan.architecture
        products, trained = 2 * self.rows * a.width * a.width * a.conv_kernel, "conv.weight" in self.plan.trained
        self.operations.append(Operation("conv", products, products * (embedded + trained)))
        self._keep("conv.in", self.rows * a.width, trained)
        self.live = self.live or self._trains("conv")
        self._norm("ln_conv")

    def _finish(self) -> None:
        if self.engine.shared:
            self.rows = self.batch * self.length  # a prompt's last keys and values are all that the text asks of it
        a = self.plan.architecture
        if a.final_norm:
            self._norm("ln_f")
        self._of_texts()
        if a.head == "masked":
            self._masked()
        elif self.plan.options.labels and a.causal:
            self._outputs("classifier", self.plan.options.labels, "ln_f.out")
        elif a.head in ("tied", "untied"):
            self._outputs("wte" if a.head == "tied" else "head", a.vocab_size, "ln_f.out")

    def _of_texts(self) -> None:
        """What an encoder's pooler, and its head for labels, make of the first token of each text."""
        a, tokens, x = self.plan.architecture, self.rows, "pooler.out"
        self.rows = self.batch
        if a.pooler:
            self.live = self._linear("pooler", (a.width, a.width), "pooler.in")
        elif a.head == "labels" and not a.patch:
            self.live, x = self._linear("classifier.dense", (a.width, a.width), "classifier.in"), "classifier.inside"
        if a.head == "labels":
            needed = self.live and not a.patch  # tanh's derivative needs its output, relu's where it is 0
            self._keep(x, self.rows * a.width, needed)
            self._outputs("classifier" if a.pooler or a.patch else "classifier.out_proj", a.labels, x)
        self.rows = tokens

    def _masked(self) -> None:
        a = self.plan.architecture
        self.live = self._linear("head.dense", (a.width, a.width), "head.in")
        self._keep("head.inside", int(self.engine.activation * self.rows * a.width), self.live)
        self._norm("head.norm")
        self._outputs("wte", a.vocab_size, "head.out")
        self.live = self.live or self._trains("head")  # its bias

    def _outputs(self, name: str, count: int, x: str) -> None:
        """The last matrix, whose outputs the loss is of."""
        self.live = self._linear(name, (count, self.plan.architecture.width), x)
        self.logits = self.rows * count


def _left_out(length: int, queries: int) -> int:
    """Attention weights of one text, zero by causality, that blocks of so many queries never compute.

    Block i of q queries leaves out the keys behind its last one: sum_{i = 1..n} q (T - i q), over the n full blocks
    that have any behind them.
    """
    blocks = (length - 1) // queries if queries else 0
    return queries * (blocks * length - queries * blocks * (blocks + 1) // 2)


# --- memory ----------------------------------------------------------------------------------------------------------

QUANTISED = {8: 8.0, 4: 4 + 8 / 64 + 32 / (64 * 256)}  # bits a weight, scales included: see `weight_bytes`
OPTIMIZERS = ("adamw", "adamw-16bit", "sgd")


def weight_bytes(plan: Plan, bits: int) -> int:
    """Bytes of all weights, base, added and drawn, when the base's are held in 32, 16, 8 or 4 bits.

    8 and 4 bits hold the matrices of the blocks only; embeddings, norms, biases and the head stay in 16. 8 bits bring
    one 32-bit scale a row (Dettmers et al. 2022, "LLM.int8()", section 3.1), 4 bits one 8-bit scale for each 64 weights
    and one 32-bit scale for each 256 of those: 4.127 bits a weight (Dettmers et al. 2023, "QLoRA", section 3).
    Raises ValueError for other bits, or when weights that are to be trained would be quantised.
    """
    if bits not in (32, 16, 8, 4):
        raise ValueError(f"count: {bits} bits a weight, expected 32, 16, 8 or 4")
    full = 4 if bits == 32 else 2
    more = size(plan.added) + size(plan.frozen) + plan.drawn
    if bits >= 16:
        return full * (size(plan.base) + more)
    held = {n: s for n, s in plan.base.items() if n.startswith("blocks.") and n.endswith("_proj.weight")}
    if both := [name for name in held if name in plan.trained]:
        raise ValueError(f"count: {plan.method} trains {both[0]}, which cannot be held in {bits} bits; use 16 or 32")
    scales = 4 * sum(shape[0] for shape in held.values()) if bits == 8 else 0
    others = size(plan.base) - size(held) + more
    return int(size(held) * QUANTISED[bits] / 8) + scales + full * others


def optimizer_bytes(optimizer: str, bits: int) -> int:
    """Bytes an optimiser keeps for each trained parameter.

    AdamW: two moments in 32 bits, 8 bytes; with 16-bit weights also a 32-bit copy of them, 12 bytes: with 2 for the
    weight and 2 for its gradient, the 16 bytes of Rajbhandari et al. 2020, "ZeRO", section 3.1. "adamw-16bit" keeps the
    moments in 16 bits and no copy, 4 bytes. SGD without momentum: the copy only.
    """
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"count: unknown optimizer {optimizer!r}; there are {', '.join(OPTIMIZERS)}")
    copy = 0 if bits == 32 or optimizer == "adamw-16bit" else 4
    return copy + {"adamw": 8, "adamw-16bit": 4, "sgd": 0}[optimizer]


def activation_bytes(plan: Plan, batch: int, length: int, bits: int, engine: str) -> int:
    """Bytes kept for the backward pass of one step, and the workspace at its peak. The loss keeps 32-bit probabilities.

    Our own, of a vocabulary's many logits, keeps the gradient of its input instead (`autograd/head.py`).
    For a GPT fully trained in 16 bits this is 2 B T C (16 + H T / C) a block. Korthikanti et al.'s eq. 1 counts
    dropout, too: B T C (34 + 5 H T / C). Without its masks, 2 B T C + B H T^2, there would be B T C (32 + 4 H T / C);
    without what dropout makes of attention's weights, 2 B H T^2 (with no dropout it is the weights), there is ours.
    """
    if engine not in ENGINES:
        raise ValueError(f"count: unknown engine {engine!r}; there are {', '.join(ENGINES)}")
    walk, a, kind = Walk(plan, batch, length, ENGINES[engine]), plan.architecture, ENGINES[engine]
    each = 4 if bits == 32 else 2
    many = 0 < kind.logits < walk.logits and not (a.head == "labels" or plan.options.labels)  # of a vocabulary
    of_loss = 4 * (walk.rows * a.width if many else walk.logits) if walk.live else 0
    workspace = int(kind.workspace * walk.rows * a.mlp_width) if walk.live else 0
    return each * (sum(walk.kept.values()) + workspace) + of_loss


def training_memory(
    plan: Plan, batch: int, length: int, bits: int, optimizer: str = "adamw", engine: str = "pytorch"
) -> dict[str, int]:
    """Bytes of a training step by part: {"weights", "gradients", "optimizer_state", "activations"}."""
    trainable = size(plan.trainable)
    return {
        "weights": weight_bytes(plan, bits),
        "gradients": trainable * (4 if bits == 32 else 2),
        "optimizer_state": trainable * optimizer_bytes(optimizer, bits),
        "activations": activation_bytes(plan, batch, length, bits, engine),
    }


def latency(plan: Plan, batch: int = 1, length: int = 1, engine: Engine = PYTORCH) -> dict[str, float]:
    """What the method adds to a forward pass, in operations, while not merged and after merging.

    -> {"base": operations of the base model, "added": the method's, "added_merged": 0 where it can be merged (Hu et al.
    2021, section 4.1: "no additional inference latency"), else the same, "share": added / base}
    """
    nothing = Plan(plan.architecture, "none", plan.options, parameters(plan.architecture), {}, {})
    base = Walk(nothing, batch, length, engine)
    added = Walk(plan, batch, length, engine).forward - base.forward
    return {
        "base": base.forward,
        "added": added,
        "added_merged": 0 if plan.mergeable else added,
        "share": added / base.forward,
    }
