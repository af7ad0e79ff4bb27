"""Writes kvpress.txt: what kvpress, the reference of several strategies, keeps of one small layer.

pip install kvpress==0.5.5 torch transformers; python fixture.py > ../resources/dev/kvmerge/strategy/kvpress.txt

A name, and the numbers up to the next name. Arrays are [head][token][dimension], in C order; choices are the tokens
that a KV head keeps, ascending. The newest is always among them, since llama.cpp goes on from its cell.
"""
import torch
from kvpress import (
    ExpectedAttentionPress,
    KeyDiffPress,
    KnormPress,
    ObservedAttentionPress,
    SnapKVPress,
    StreamingLLMPress,
    TOVAPress,
)
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    repeat_kv,
)

TOKENS, DIM, HEADS, KV_HEADS, KEPT = 48, 8, 4, 2, 20
WINDOW, KERNEL, SINKS = 8, 5, 4

torch.manual_seed(7)
torch.set_default_dtype(torch.float64)


def write(name, values):
    print(name)
    for row in values.reshape(-1, DIM).tolist():
        print(*(f"{x:.7f}" for x in row))


def choices(name, scores, first=0):
    for head in range(scores.shape[1]):
        scores[0, head, -1] = torch.inf
        kept = scores[0, head].topk(KEPT).indices.sort().values
        print(f"{name}-{first + head}", *kept.tolist())


def layer():
    config = LlamaConfig(
        hidden_size=32, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=DIM, num_hidden_layers=1
    )
    config._attn_implementation = "eager"
    module = LlamaAttention(config, layer_idx=0)
    module.rotary_emb = LlamaRotaryEmbedding(config)
    with torch.no_grad():
        for weight in (module.q_proj.weight, module.k_proj.weight):
            weight.normal_(0, 0.35)
    hidden = torch.randn(1, TOKENS, 32) + 0.6 * torch.randn(1, 1, 32)
    positions = module.rotary_emb(hidden, torch.arange(TOKENS)[None])
    shape = (1, TOKENS, -1, DIM)
    queries = module.q_proj(hidden).view(shape).transpose(1, 2)
    keys = module.k_proj(hidden).view(shape).transpose(1, 2)
    values = module.v_proj(hidden).view(shape).transpose(1, 2)
    queries, keys = apply_rotary_pos_emb(queries, keys, *positions)
    scores = queries @ repeat_kv(keys, HEADS // KV_HEADS).transpose(2, 3) / DIM**0.5
    hidden_from = torch.triu(torch.full((TOKENS, TOKENS), float("-inf")), diagonal=1)
    attention = torch.softmax(scores + hidden_from, -1)
    return module, hidden, queries, keys, values, attention, {"position_embeddings": positions}


@torch.no_grad()
def main():
    print("shape", TOKENS, DIM, HEADS, KV_HEADS, KEPT, WINDOW, KERNEL, SINKS)
    module, hidden, queries, keys, values, attention, more = layer()
    write("queries", queries)
    write("keys", keys)
    write("values", values)
    ratio = 1 - KEPT / TOKENS
    presses = {
        "streaming-llm": StreamingLLMPress(ratio, n_sink=SINKS),
        "knorm": KnormPress(ratio),
        "keydiff": KeyDiffPress(ratio),
        "snapkv": SnapKVPress(ratio, window_size=WINDOW, kernel_size=KERNEL),
        "average-mass": ObservedAttentionPress(ratio),
        "expected-attention": ExpectedAttentionPress(ratio, n_sink=SINKS),
    }
    for name, press in presses.items():
        choices(name, press.score(module, hidden, keys, values, attention, more))
    # TOVA averages over the heads of a layer; here each KV head chooses, so it is asked head by head.
    for head in range(KV_HEADS):
        own = attention[:, head * HEADS // KV_HEADS : (head + 1) * HEADS // KV_HEADS]
        scores = TOVAPress(ratio).score(module, hidden, keys[:, head : head + 1], values, own, more)
        choices("tova", scores, head)


main()
