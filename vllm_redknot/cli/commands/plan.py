"""`redknot plan`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from vllm_redknot.cli import options
from vllm_redknot.cli.app import console, emit_json, print_table, warn
from vllm_redknot.cli.capacity_plan import ContextPlan, Server, plan_context
from vllm_redknot.cli.model_file import MAX_HEAD_DIM
from vllm_redknot.cli.plan_inputs import ELEMENT_BYTES, ShapeGiven, Subject, kv_bytes_per_rank, plan_subject
from vllm_redknot.cli.plan_json import plan_document
from vllm_redknot.cli.plan_png import save_plan
from vllm_redknot.cli.target import settings
from vllm_redknot.cli.units import (
    default_contexts,
    parse_bytes,
    parse_token_list,
    show_bytes,
    show_flops,
    show_tokens,
)
from vllm_redknot.heads.profile import MAX_HEADS, MAX_LAYERS
from vllm_redknot.kvcache.capacity import PageFormat


class Dtype(StrEnum):
    """The types K and V may have; `auto` is the checkpoint's, 16-bit for fp32 checkpoints, as in vLLM."""

    AUTO = "auto"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


def plan(
    model: Annotated[
        Path | None,
        typer.Argument(metavar="MODEL", help="A folder with a config.json. No weights are needed."),
    ] = None,
    heads: options.Heads = None,
    window: options.Window = None,
    sink: options.Sink = None,
    dense_prefix_layers: options.DensePrefix = None,
    duo_threshold: options.DuoThreshold = None,
    rows: options.Rows = None,
    layers: Annotated[
        int | None, typer.Option(min=1, max=MAX_LAYERS, metavar="N", help="Attention layers, without MODEL.")
    ] = None,
    kv_heads: Annotated[
        int | None, typer.Option(min=1, max=MAX_HEADS, metavar="N", help="KV heads, without MODEL.")
    ] = None,
    query_heads: Annotated[
        int | None, typer.Option(min=1, max=MAX_HEADS, metavar="N", help="Query heads, without MODEL.")
    ] = None,
    head_dim: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_HEAD_DIM, metavar="N", help="Elements of a head's key, without MODEL."),
    ] = None,
    contexts: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Context lengths: a row each, as if the server had that --max-model-len.",
            show_default="8K,32K,128K, or up to the model's longest",
        ),
    ] = None,
    kv_bytes: Annotated[int | None, options.kv_bytes("KV memory of a GPU, exact.")] = None,
    gpu_memory: Annotated[
        int | None,
        typer.Option(
            metavar="BYTES",
            parser=parse_bytes,
            help="Memory of a GPU; KV gets what weights leave, an estimate.",
        ),
    ] = None,
    gpu_memory_utilization: Annotated[
        float, typer.Option(min=0.01, max=1.0, metavar="X", help="Share of --gpu-memory that vLLM uses.")
    ] = 0.92,
    weights: Annotated[
        int | None,
        typer.Option(
            metavar="BYTES",
            parser=parse_bytes,
            help="Weights of all GPUs together.",
            show_default="files in MODEL, else by its config.json",
        ),
    ] = None,
    reserve: Annotated[
        int, typer.Option(metavar="BYTES", parser=parse_bytes, help="Left for activations of a GPU, a guess.")
    ] = "2GiB",  # type: ignore[assignment]
    tp: options.TensorParallel = 1,
    block_size: options.BlockSize = 16,
    batched_tokens: options.BatchedTokens = "2K",  # type: ignore[assignment]
    async_scheduling: Annotated[
        bool, typer.Option(help="vLLM's: two batches are in flight at once. Off on CPUs.")
    ] = True,
    max_groups: options.MaxGroups = None,
    dtype: Annotated[Dtype, typer.Option(help="Type of K and V.")] = Dtype.AUTO,
    png: options.Png = None,
    json: options.Json = False,
) -> None:
    """Say what a server's KV cache costs before there is a server: bytes, sessions, FLOPs.

    KV bytes are the engine's: blocks, tokens in flight, and the padding and promotion of the KV-cache groups the
    plugin would form. The closed form leaves the groups out. Stock is vLLM storing every token of every head. With row
    skipping the FLOPs of a prompt's prefill are told with and without it. All figures are per GPU. Works without vLLM,
    from the config.json or from four numbers.

    Examples:

      redknot plan ~/models/Llama-3.3-70B --heads heads.json --tp 4 --gpu-memory 80GiB

      redknot plan --layers 64 --kv-heads 8 --query-heads 64 --head-dim 128 --heads heads.json --kv-bytes 40GiB
    """
    if kv_bytes is not None and gpu_memory is not None:
        raise typer.BadParameter(
            "--kv-bytes and --gpu-memory are two ways to say one thing: give one of them"
        )
    options.check_block_size(block_size)
    lengths = None if contexts is None else parse_token_list(contexts, "--contexts")
    config = settings(
        heads=heads,
        window=window,
        sink=sink,
        dense_prefix_layers=dense_prefix_layers,
        duo_threshold=duo_threshold,
        max_groups=max_groups,
        rows=rows,
    )
    subject = plan_subject(model, config, ShapeGiven(layers, kv_heads, query_heads, head_dim))
    memory = kv_bytes
    if gpu_memory is not None:
        memory = kv_bytes_per_rank(subject, gpu_memory, gpu_memory_utilization, weights, reserve, tp)
    server = Server(
        profile=subject.profile,
        attention_layers=subject.attention_layers,
        query_heads=subject.query_heads,
        page=PageFormat(subject.head_dim, ELEMENT_BYTES[dtype], block_size),
        in_flight_tokens=batched_tokens * (2 if async_scheduling else 1),
        max_groups=config.max_groups,
        tp_size=tp,
        sliding=subject.sliding,
        kv_bytes=memory,
        sizes=subject.sizes,
        layers=subject.layers,
        rows=subject.rows,
    )
    plans = [plan_context(server, context) for context in lengths or default_contexts(subject.max_context)]
    if png is not None:
        save_plan(plans, subject.origin, png)
    if json:
        emit_json(plan_document(server, subject, plans))
        return
    for warning in subject.warnings:
        warn(warning)
    source = "" if gpu_memory is None else f", an estimate: {show_bytes(gpu_memory)} less weights and reserve"
    _show(server, subject, plans, "" if memory is None else f", {show_bytes(memory)} of KV memory{source}")


def _show(server: Server, subject: Subject, plans: Sequence[ContextPlan], memory: str) -> None:
    out = console()
    out.print(subject.origin, style="bold", soft_wrap=True)
    out.print(server.profile.describe())
    if server.rows is not None:
        out.print(f"With {server.rows.describe()}.")
    if server.sliding:
        out.print(
            f"{len(server.sliding)} layers have a sliding window of their own and keep that, stock as here."
        )
    out.print(
        f"Per GPU of {server.tp_size}: pages of {server.page.block_size} tokens ({server.page.page_bytes} bytes),"
        f" {server.in_flight_tokens} tokens in flight{memory}."
    )
    columns = ["context", "stock", "REDKNOT", "kept", "closed form", "groups"]
    _table(out, "KV of one longest request", columns, map(_kv_row, plans))
    if server.kv_bytes is not None:
        columns = ["context", "stock", "REDKNOT", "gain", "tokens cached"]
        _table(out, "Longest requests at once", columns, map(_session_row, plans))
    columns = ["context", "stock prefill", "REDKNOT", "stock token", "REDKNOT"]
    _table(
        out, "Attention FLOPs of one request: its prefill, and the next token", columns, map(_work_row, plans)
    )
    if server.sizes is not None:
        columns = ["context", "stock", "REDKNOT", *([] if server.rows is None else ["rows skipped as well"])]
        _table(
            out,
            "FLOPs of one prefill: projections, FFN and attention",
            columns,
            map(_prefill_row, plans),
        )
    if server.rows is not None:
        columns = ["context", "attention", "FFN"]
        _table(out, "Rows (tokens x layers) skipped in late layers", columns, map(_rows_row, plans))
        if server.rows.sparse_ffn is not None:
            out.print("What sparse_ffn skips depends on the text: none of it is counted.")


def _table(out: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    out.print()
    out.print(title, style="bold")
    print_table(out, columns, rows)


def _kv_row(plan: ContextPlan) -> list[str]:
    return [
        show_tokens(plan.context),
        show_bytes(plan.stock.request_bytes),
        show_bytes(plan.redknot.request_bytes),
        f"{plan.kept_share:.1%}",
        show_bytes(plan.redknot.closed_form_bytes),
        str(plan.redknot.groups),
    ]


def _session_row(plan: ContextPlan) -> list[str]:
    ours, stock = plan.redknot.sessions or 0.0, plan.stock.sessions or 0.0
    return [
        show_tokens(plan.context),
        f"{stock:.2f}",
        f"{ours:.2f}",
        f"{ours / stock:.2f}x" if stock else "-",
        f"{plan.redknot.cached_tokens or 0:,}",
    ]


def _work_row(plan: ContextPlan) -> list[str]:
    stock, ours = plan.stock.work, plan.redknot.work
    return [
        show_tokens(plan.context),
        show_flops(stock.prefill),
        f"{show_flops(ours.prefill)} ({ours.prefill / stock.prefill:.0%})",
        show_flops(stock.decode),
        f"{show_flops(ours.decode)} ({ours.decode / stock.decode:.0%})",
    ]


def _prefill_row(plan: ContextPlan) -> list[str]:
    stock = plan.stock.prefill
    assert stock is not None
    less = [work for work in (plan.redknot.prefill, plan.prefill_with_rows) if work is not None]
    shown = [f"{show_flops(work.total)} ({work.total / stock.total:.0%})" for work in less]
    return [show_tokens(plan.context), show_flops(stock.total), *shown]


def _rows_row(plan: ContextPlan) -> list[str]:
    assert plan.rows is not None
    return [show_tokens(plan.context), f"{plan.rows.attention:.1%}", f"{plan.rows.ffn:.1%}"]
