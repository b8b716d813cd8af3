"""Every private name of JAX and Orbax that the package uses, with its signature: an upgrade is one red test here.

The source is read for uses, so that a new one has to be written into the table first. What differs between the two
versions of JAX that are supported is told apart by `BY_JAX`.
"""

import ast
import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import pytest
from orbax.checkpoint import v1 as ocp

from omnihuman_jax.checkpoint import orbax_slices

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("jax", "flax", "optax", "orbax", "grain", "tensorflow_datasets")
# Public by name, experimental by place, and entered below their front door.
PRIVATE_MODULES = ("splash_attention",)

CUDNN = "jax._src.cudnn.fused_attention_stablehlo"
SPLASH = "jax.experimental.pallas.ops.tpu.splash_attention.splash_attention"
ORBAX = "orbax.checkpoint._src"
V1 = "orbax.checkpoint.experimental.v1._src.serialization"

LAYOUTS = ", ".join(f"{name}_layout=<QKVLayout.HEAD_DIM_MINOR: 1>" for name in "qkv")
# The first release of JAX with the signature -> the signature.
BY_JAX = {
    f"{CUDNN}.dot_product_attention": {
        (0, 10): "(query, key, value, bias=None, mask=None, q_seqlen=None, kv_seqlen=None, q_offsets=None, "
        "kv_offsets=None, fp8_params=None, *, scale=1.0, mask_type=<MaskType.NO_MASK: 0>, seed=42, dropout_rate=0.0, "
        "qkv_layout='BTNH', sliding_window_length=None, use_fp8=False, return_residual=False)",
        (0, 12): "(query, key, value, bias=None, mask=None, q_seqlen=None, kv_seqlen=None, q_offsets=None, "
        "kv_offsets=None, fp8_params=None, score_mod_args=(), *, scale=1.0, mask_type=<MaskType.NO_MASK: 0>, seed=42, "
        "dropout_rate=0.0, qkv_layout='BTNH', sliding_window_length=None, score_mod=None, use_fp8=False, "
        "return_residual=False)",
    },
    f"{CUDNN}._dot_product_attention_bwd_rule": {
        (0, 10): "(scale, seed, dropout_rate, variadic_args, mask_type, layout, sliding_window_length, is_training, "
        "return_residual, res, grad_output)",
        (0, 12): "(scale, seed, dropout_rate, variadic_args, mask_type, layout, sliding_window_length, score_mod, "
        "cudnn_version, return_residual, res, grad_output)",
    },
}
SIGNATURES = {name: by[max(v for v in by if v <= jax.__version_info__[:2])] for name, by in BY_JAX.items()} | {
    "jax._src.xla_bridge.backends_are_initialized": "()",
    f"{SPLASH}_kernel.SegmentIds": "(q, kv)",
    f"{SPLASH}_kernel.BlockSizes": "(block_q, block_kv, block_kv_compute=None, block_q_dkv=None, block_kv_dkv=None, "
    f"block_kv_dkv_compute=None, block_q_dq=None, block_kv_dq=None, use_fused_bwd_kernel=False, {LAYOUTS})",
    f"{SPLASH}_kernel._splash_attention_forward": "(fwd_mask_info, q, k, v, segment_ids, sinks, mask_value, is_mqa, "
    "block_sizes, residual_checkpoint_name, save_residuals, mask_function, attn_logits_soft_cap=None, interpret=False)",
    f"{SPLASH}_kernel._splash_attention_bwd_dkv": "(q, k, v, segment_ids, sinks, logsumexp, do, di, *, bq, bkv, "
    "bkv_compute, is_mqa, mask_info, mask_value, attn_logits_soft_cap, use_fused_bwd_kernel, q_layout, k_layout, "
    "v_layout, mask_function, interpret)",
    f"{SPLASH}_kernel._splash_attention_bwd_dq": "(q, k, v, segment_ids, sinks, logsumexp, do, di, *, bq, bkv, is_mqa, "
    "mask_info, mask_value, attn_logits_soft_cap, q_layout, k_layout, v_layout, mask_function, interpret)",
    f"{SPLASH}_mask_info.MaskInfo": "(data_next, mask_next, block_mask, partial_mask_blocks, q_sequence, "
    "is_dynamic_mask=None)",
    f"{ORBAX}.futures.future.CommitFutureAwaitingContractedSignals": "(coro, *, name=None, send_signals=None, "
    "timeout_secs=None, operation_id=None)",
    f"{ORBAX}.multihost.multihost.is_primary_host": "(primary_host)",
    f"{ORBAX}.multihost.multihost.process_index": "()",
    f"{ORBAX}.serialization.jax_array_handlers._async_serialize_shardings": "(shardings, infos, *, primary_host)",
    f"{ORBAX}.serialization.jax_array_handlers.ArrayHandler": "(metadata_key=None, primary_host=0, replica_id=0, "
    "use_replica_parallel=None, min_slice_bytes_for_replica_parallel=None, max_replicas_for_replica_parallel=None, "
    "enable_write_sharding_file=True, array_metadata_store=None, enable_replica_parallel_separate_folder=False, "
    "dispatcher=None, callback=None)",
    f"{ORBAX}.serialization.ocdbt_utils.get_process_index_for_subdir": "(use_ocdbt, override_ocdbt_process_id=None)",
    f"{ORBAX}.serialization.replica_slices.get_replica_slices": "(arr, replica_id, use_replica_parallel, "
    "min_slice_bytes_for_replica_parallel=None, max_replicas_for_replica_parallel=None)",
    f"{ORBAX}.serialization.replica_slices.ReplicaSlices": "(global_shape, local_shape, sharding, dtype, is_on_host, "
    "replica_slices)",
    f"{ORBAX}.serialization.tensorstore_utils.build_array_write_spec": "(info, arg=None, *, global_shape, local_shape, "
    "dtype, use_ocdbt, process_index=None, replica_separate_folder=False, metadata_key=None, ext_metadata=None)",
    f"{V1}.array_leaf_handler.ArrayLeafHandler": "(*, context=None)",
    f"{V1}.registry.BaseLeafHandlerRegistry": "()",
}
# Values and types that are named, and what is read of them.
ATTRIBUTES = {
    "jax._src.distributed.global_state": ("client", "num_processes", "process_id"),
    f"{CUDNN}.MaskType": ("PADDING",),
    f"{CUDNN}.AttentionLayout": ("BTNH",),
    f"{SPLASH}_kernel.QKVLayout": ("HEAD_DIM_MINOR",),
    f"{SPLASH}_kernel.DEFAULT_MASK_VALUE": (),
    f"{ORBAX}.futures.future.Future": ("result",),
    f"{ORBAX}.serialization.types.ParamInfo": ("await_path_creation", "parent_dir", "ts_context"),
    f"{ORBAX}.serialization.types.SaveArgs": (),
    f"{V1}.registry.STANDARD_TYPE_AND_ABSTRACT_TYPE_AND_TYPESTR_TO_HANDLER": (),
}
CLIENT = {
    "wait_at_barrier": "(self, barrier_id: str, timeout_in_ms: int, "
    "process_ids: collections.abc.Sequence[int] | None = None) -> None",
    "key_value_set": "(self, key: str, value: str, allow_overwrite: bool = False) -> None",
    "key_value_dir_get": "(self, key: str) -> list[tuple[str, str]]",
    "key_value_delete": "(self, key: str) -> None",
}


def found(name: str) -> Any:
    """The object of a dotted name."""
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


def signature(function: Any) -> str:
    """Names, order and defaults of its parameters, without types."""
    parameters = inspect.signature(function).parameters.values()
    return str(inspect.Signature([parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]))


def private_names(source: str) -> Iterator[str]:
    """Dotted names of the libraries that a source uses and that have a private part."""
    tree = ast.parse(source)
    imported = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in LIBRARIES:
            imported |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        if isinstance(node, ast.Import):
            names = [alias for alias in node.names if alias.name.split(".")[0] in LIBRARIES]
            imported |= {alias.asname or alias.name.split(".")[0]: _bound(alias) for alias in names}

    def dotted(node: ast.AST) -> str | None:
        if isinstance(node, ast.Attribute) and (base := dotted(node.value)):
            return f"{base}.{node.attr}"
        return imported.get(node.id) if isinstance(node, ast.Name) else None

    for node in ast.walk(tree):
        if (name := dotted(node)) and _is_private(name):
            yield name


def _bound(alias: ast.alias) -> str:
    return alias.name if alias.asname else alias.name.split(".")[0]


def _is_private(name: str) -> bool:
    parts = name.split(".")
    return any((part.startswith("_") and not part.startswith("__")) or part in PRIVATE_MODULES for part in parts)


def test_the_table_has_every_private_name_that_the_source_uses() -> None:
    rooms = ("omnihuman_jax", "data_pipelines", "launch", "configs")
    sources = [path.read_text() for room in rooms for path in (ROOT / room).rglob("*.py")]
    used = {name for source in sources for name in private_names(source)}
    modules = {name for name in used if any(other.startswith(f"{name}.") for other in used)}
    table = SIGNATURES.keys() | ATTRIBUTES.keys()
    # A field of what the table has is the table's too.
    unknown = {name for name in used - modules if not any(f"{name}.".startswith(f"{known}.") for known in table)}
    assert not unknown, "private names of libraries: write them into the table, with their signatures"
    unused = {known for known in table if not any(f"{name}.".startswith(f"{known}.") for name in used)}
    assert not unused, "nobody uses them any more"


def test_the_search_sees_every_way_to_a_private_name() -> None:
    source = (
        "import jax\nimport jax.numpy as jnp\nfrom jax._src import core as c, mesh\nfrom orbax import checkpoint\n"
        "c.Trace, mesh\njax._src.api.jit\njnp.zeros._code\ncheckpoint.__version__\nself._own\n"
    )
    assert set(private_names(source)) == {
        "jax._src.core",
        "jax._src.core.Trace",
        "jax._src.mesh",
        "jax._src",
        "jax._src.api",
        "jax._src.api.jit",
        "jax.numpy.zeros._code",
    }


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_signature(name: str) -> None:
    assert signature(found(name)) == SIGNATURES[name]


@pytest.mark.parametrize("name", sorted(ATTRIBUTES))
def test_attributes(name: str) -> None:
    owner = found(name)
    # A field that `__init__` sets is in no `dir` of its class.
    fields = inspect.signature(owner).parameters if inspect.isclass(owner) else ()
    assert set(ATTRIBUTES[name]) <= {*dir(owner), *fields}


def test_the_coordination_services_client() -> None:
    """Its methods are C++: their documentation is their signature."""
    client = found("jax._src.lib._jax").DistributedRuntimeClient
    assert {name: getattr(client, name).__doc__.splitlines()[0] for name in CLIENT} == {
        name: f"{name}{text}" for name, text in CLIENT.items()
    }


def test_what_our_orbax_handlers_override_and_read() -> None:
    """`checkpoint/orbax_slices.py` puts its class in place of the handler's own, and reads that one's fields."""
    own = orbax_slices._LeafHandler()._handler_impl
    original = found(f"{V1}.array_leaf_handler").ArrayLeafHandler()._handler_impl
    assert type(original) is found(f"{ORBAX}.serialization.jax_array_handlers.ArrayHandler")
    assert vars(own).keys() == vars(original).keys()
    assert vars(own).keys() >= {
        "_primary_host",
        "_replica_id",
        "_use_replica_parallel",
        "_min_slice_bytes_for_replica_parallel",
        "_max_replicas_for_replica_parallel",
        "_array_metadata_store",
    }
    assert signature(type(original).serialize) == signature(type(own).serialize) == "(self, values, infos, args=None)"
    slice_fields = inspect.signature(found(f"{ORBAX}.serialization.replica_slices.ReplicaSlice")).parameters
    assert list(slice_fields) == ["index", "unsliced_data", "slice_args"]
    assert "leaf_handler_registry" in inspect.signature(ocp.handlers.PyTreeHandler).parameters
    registry = found(f"{V1}.registry.BaseLeafHandlerRegistry")
    assert signature(registry.add) == (
        "(self, leaf_type, abstract_type, handler_type, override=False, secondary_typestrs=None)"
    )
    rows = found(f"{V1}.registry.STANDARD_TYPE_AND_ABSTRACT_TYPE_AND_TYPESTR_TO_HANDLER")
    assert [len(row) for row in rows] == [4] * len(rows) and jax.Array in [row[0] for row in rows]
