"""The plugin in a process: registered once, refused cleanly, inert unless it is asked for."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clean_vllm import CleanVllm
from vllm_redknot.plugin import SUPPORTED_VLLM, is_supported, register

# Importing vLLM once more takes seconds; every scenario after that is quick.
pytestmark = pytest.mark.slow

STATE = """
def state():
    from vllm.v1.attention.backends.registry import AttentionBackendEnum
    from vllm.v1.core import kv_cache_utils
    from vllm.platforms import current_platform
    from vllm.v1.kv_cache_spec_registry import _REGISTRY_KVCACHESPEC_LIST as specs
    return {
        "offered": "REDKNOT" in AttentionBackendEnum.__members__,
        "grouping": getattr(kv_cache_utils.get_kv_cache_groups, "__redknot_patch__", None),
        "choice": getattr(type(current_platform).get_attn_backend_cls, "__redknot_patch__", None),
        "checks": getattr(type(current_platform).check_and_update_config, "__redknot_patch__", None),
        "specs": sum(spec.__name__ == "SinkWindowSpec" for spec in specs),
    }
"""
UNTOUCHED = {"offered": False, "grouping": None, "choice": None, "checks": None, "specs": 0}
REGISTERED = {
    "offered": True,
    "grouping": "kv_cache_groups",
    "choice": "cpu_backend_choice",
    "checks": "early_checks",
    "specs": 1,
}


@pytest.fixture(scope="module")
def clean() -> Iterator[CleanVllm]:
    with CleanVllm() as vllm:
        yield vllm


def test_vllm_loads_the_plugin_by_its_entry_point(clean: CleanVllm) -> None:
    found = clean.run(
        STATE,
        """
        from vllm.plugins import load_general_plugins
        before = state()
        load_general_plugins()
        print(json.dumps([before, state()]))
    """,
    )
    assert found.result == [UNTOUCHED, REGISTERED]


def test_registering_again_changes_nothing(clean: CleanVllm) -> None:
    found = clean.run(
        "",
        """
        from vllm_redknot.plugin import register
        from vllm.v1.attention.backends.registry import AttentionBackendEnum
        from vllm.v1.core import kv_cache_utils
        from vllm.platforms import current_platform
        def snapshot():
            platform = vars(type(current_platform))
            return [kv_cache_utils.get_kv_cache_groups, platform["get_attn_backend_cls"],
                    platform["check_and_update_config"], AttentionBackendEnum.REDKNOT, len(AttentionBackendEnum)]
        register()
        first = snapshot()
        register.cache_clear()
        register()
        second = snapshot()
        assert not hasattr(kv_cache_utils.get_kv_cache_groups.__wrapped__, "__wrapped__")
        print(json.dumps(all(a is b for a, b in zip(first[:-1], second)) and first[-1] == second[-1]))
    """,
    )
    assert found.result is True
    assert not found.logged("ERROR")


def test_everything_it_changes_in_vllm_is_in_the_ledger(clean: CleanVllm) -> None:
    found = clean.run(
        "",
        """
        def snapshot():
            seen = {}
            for name, module in list(sys.modules.items()):
                if name.split(".")[0] != "vllm" or module is None:
                    continue
                for key, value in list(vars(module).items()):
                    seen[f"{name}:{key}"] = value
                    if isinstance(value, type) and value.__module__ == name:
                        for attribute, held in list(vars(value).items()):
                            seen[f"{name}:{key}.{attribute}"] = held
            return seen
        # Modules that a backend's class or a spec's manager are imported from, with or without the plugin.
        import vllm.model_executor.models.utils, vllm.v1.attention.backends.cpu_attn
        from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry
        KVCacheSpecRegistry._ensure_registered()
        before = snapshot()
        from vllm_redknot.plugin import register
        register()
        after = snapshot()
        changed = {key for key in before if after.get(key, None) is not before[key]}
        added = {key for key in after if key not in before and key.partition(":")[0] in
                 {name.partition(":")[0] for name in before}}
        from vllm_redknot.patches import patches_for_this_vllm
        print(json.dumps([sorted(changed), sorted(added), sorted(p.target for p in patches_for_this_vllm())]))
    """,
    )
    changed, added, ledger = found.result
    assert changed == ledger
    # A module that was imported for the first time becomes an attribute of its package.
    assert [name for name in added if "REDKNOT" in name] == [
        "vllm.v1.attention.backends.registry:AttentionBackendEnum.REDKNOT"
    ]


@pytest.mark.parametrize("version", ["0.31.4", "0.34.0", "1.0", "0.320.1", "dev"])
def test_other_versions_of_vllm_are_refused(version: str) -> None:
    assert not is_supported(version)


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1+cpu", "0.33.0", "0.33.2rc1"])
def test_supported_versions_of_vllm_are_recognised(version: str) -> None:
    assert is_supported(version)


def test_an_unsupported_vllm_gets_one_line_and_stays_as_it_was(clean: CleanVllm) -> None:
    found = clean.run(
        STATE,
        """
        import vllm
        vllm.__version__ = "0.99.1"
        from vllm_redknot.plugin import register
        register()
        register()
        print(json.dumps(state()))
    """,
    )
    assert found.result == UNTOUCHED
    [line] = found.logged("WARNING")
    assert "0.99.1" in line
    assert all(release in line for release in SUPPORTED_VLLM)


def test_asking_an_unsupported_vllm_for_redknot_names_the_choices(clean: CleanVllm, model_path: Path) -> None:
    found = clean.run(
        "",
        f"""
        import vllm
        vllm.__version__ = "0.99.1"
        from vllm.engine.arg_utils import EngineArgs
        try:
            EngineArgs(model={str(model_path)!r}, attention_backend="REDKNOT").create_engine_config()
        except Exception as error:
            print(json.dumps(str(error)))
    """,
    )
    assert "REDKNOT" in found.result
    assert "CPU_ATTN" in found.result


@pytest.mark.parametrize(
    "flags",
    [
        ["--attention-backend", "redknot"],
        ["--attention-config", '{"backend": "REDKNOT"}'],
        ["--attention-config.backend", "REDKNOT"],
        ["--attention-config", '{"backend_per_kind": {"full_attention": "REDKNOT"}}'],
    ],
    ids=" ".join,
)
def test_the_command_line_knows_the_name(clean: CleanVllm, model_path: Path, flags: list[str]) -> None:
    found = clean.run(
        "",
        f"""
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.utils.argparse_utils import FlexibleArgumentParser
        parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
        arguments = AsyncEngineArgs.from_cli_args(parser.parse_args(["--model", {str(model_path)!r}, *{flags!r}]))
        from vllm_redknot.settings import is_requested
        print(json.dumps(is_requested(arguments.create_engine_config())))
    """,
    )
    assert found.result is True


def test_a_changed_vllm_function_is_logged_once_and_vllm_goes_on(clean: CleanVllm) -> None:
    found = clean.run(
        STATE,
        """
        from vllm.v1.core import kv_cache_utils
        def get_kv_cache_groups(vllm_config, kv_cache_spec, something_new): return "vllm's own"
        kv_cache_utils.get_kv_cache_groups = get_kv_cache_groups
        from vllm.plugins import load_general_plugins
        from vllm_redknot.plugin import register
        load_general_plugins()
        register()
        assert kv_cache_utils.get_kv_cache_groups(1, 2, 3) == "vllm's own"
        print(json.dumps(state()))
    """,
    )
    # The spec is registered already; without the backend's name nothing can ask for it.
    assert found.result == {**UNTOUCHED, "specs": 1}
    [line] = found.logged("ERROR")
    assert "REDKNOT is not available, vLLM goes on" in line
    assert "something_new" in found.output


def test_a_broken_import_is_logged_and_vllm_goes_on(clean: CleanVllm) -> None:
    found = clean.run(
        STATE,
        """
        sys.modules["vllm_redknot.kvcache.registration"] = None
        from vllm_redknot.plugin import register
        register()
        print(json.dumps(state()))
    """,
    )
    assert found.result == UNTOUCHED
    assert len(found.logged("ERROR")) == 1


def test_a_pickled_choice_registers_the_plugin_where_it_arrives(clean: CleanVllm) -> None:
    register()
    from vllm.config import AttentionConfig
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    config = AttentionConfig(backend=AttentionBackendEnum["REDKNOT"])
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        sent = pickle.dumps((config, AttentionBackendEnum["REDKNOT"]), protocol)
        found = clean.run(
            STATE,
            f"""
            import pickle
            from vllm.v1.attention.backends.registry import AttentionBackendEnum
            config, member = pickle.loads({sent!r})
            assert member is config.backend is AttentionBackendEnum["REDKNOT"]
            assert pickle.loads(pickle.dumps(member)) is member
            print(json.dumps(state()))
        """,
        )
        assert found.result == REGISTERED


def test_a_pickled_choice_fails_clearly_where_the_plugin_cannot_register(clean: CleanVllm) -> None:
    register()
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    sent = pickle.dumps(AttentionBackendEnum["REDKNOT"])
    found = clean.run(
        "",
        f"""
        import pickle, vllm
        vllm.__version__ = "0.99.1"
        try:
            pickle.loads({sent!r})
        except ValueError as error:
            print(json.dumps(str(error)))
    """,
    )
    assert "REDKNOT" in found.result
    assert len(found.logged("WARNING")) == 1


def test_a_forked_process_keeps_the_registration(clean: CleanVllm) -> None:
    found = clean.run(
        STATE,
        """
        import multiprocessing
        from vllm_redknot.plugin import register
        register()
        def child():
            register()
            print(json.dumps(state()), flush=True)
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join()
        assert process.exitcode == 0
    """,
    )
    assert found.result == REGISTERED


def test_a_spawned_process_gets_the_choice_by_pickle(clean: CleanVllm) -> None:
    found = clean.run(
        "",
        """
        import multiprocessing
        from vllm_redknot.plugin import register
        register()
        from vllm.v1.attention.backends.registry import AttentionBackendEnum
        process = multiprocessing.get_context("spawn").Process(target=repr, args=(AttentionBackendEnum.REDKNOT,))
        process.start()
        process.join()
        print(json.dumps(process.exitcode))
    """,
    )
    assert found.result == 0
