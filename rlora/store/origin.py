"""Where an adapter, a run or an evaluation comes from, by content: names may change, what they stand for may not."""

from collections.abc import Mapping
from pathlib import Path

from rlora.errors import AdapterError, RunDirError
from rlora.lora.peft.peft_format import CONFIG_FILE, read_adapter_config
from rlora.model.identity import changed_parts
from rlora.model.sources import BUNDLED, BUNDLED_HUB, short_name
from rlora.store.run_dir import read_json
from rlora.system.stamp import STAMP_FILE, read_stamp

_SAME_NAMES = {BUNDLED: BUNDLED_HUB}


def version_of(folder: Path) -> int:
    """Return the step that rlora wrote beside an adapter or a model, 0 for one from elsewhere."""
    try:
        stamp = read_stamp(folder)
        return int(stamp["version"]) if stamp or (folder / STAMP_FILE).exists() else 0
    except (ValueError, KeyError, TypeError) as error:
        path = folder / STAMP_FILE
        raise AdapterError(f"{path} does not state the version of the adapter: {error!r}") from error


def inputs_of_run(run_dir: Path) -> dict[str, dict[str, str]]:
    """Return the digests of what a run was given, `base` and `data`; nothing of one that an older rlora began."""
    stored = run_dir / "environment.json"
    found = read_json(stored) if stored.is_file() else {}
    return {name: found[name] for name in ("base", "data") if isinstance(found.get(name), dict)}


def is_supervised(stored: Mapping[str, object]) -> bool:
    """Whether a run's configuration, as it is stored, is that of supervised training."""
    return "examples_per_step" in stored


def states_date(run_dir: Path) -> bool:
    """Whether a run states the day that chat templates write in it, as all do since there is such a day."""
    stored = run_dir / "config.json"
    prompt = read_json(stored).get("prompt") if stored.is_file() else None
    return isinstance(prompt, dict) and bool(prompt.get("date"))


def date_of(run_dir: Path) -> str:
    """Return the day that chat templates write in a run: the one that it states, else the one on which it began."""
    prompt = read_json(run_dir / "config.json").get("prompt")
    stated = prompt.get("date") if isinstance(prompt, dict) else None
    if stated:
        return str(stated)
    about = run_dir / "run.json"  # a folder that was put together by hand has none
    return str(read_json(about).get("created", "")[:10]) if about.is_file() else ""


def refuse_other_base(stated: Mapping[str, str], now: Mapping[str, str], *, whose: str, name: str) -> None:
    """Raise RunDirError where the base in use is another than the one that `whose` trained on, by the parts stated."""
    if parts := changed_parts(stated, now):
        raise RunDirError(
            f"the model {name} is not the one that {whose} was trained on: they differ in {' and '.join(parts)}. Put "
            "the model back as it was, or name the right one."
        )


def other_base(adapter: Path, name: str, now: Mapping[str, str]) -> str:
    """Return a warning where an adapter names another base than `name`, "" where it is the same.

    Raises AdapterError where the adapter states digests of its base, and weights, tokenizer or config are others.
    """
    try:
        stated = read_stamp(adapter).get("base", {})
    except ValueError as error:
        raise AdapterError(str(error)) from error
    stated = stated if isinstance(stated, dict) else {}
    parts = [part for part in changed_parts(stated, now) if part != "template"]  # how it is asked is one's own choice
    if parts:
        raise AdapterError(
            f"{adapter} was trained on another base than {name}: they differ in {' and '.join(parts)}, so it means "
            "nothing there. Name its own base."
        )
    if stated or not (adapter / CONFIG_FILE).is_file():
        return ""
    named = str(read_adapter_config(adapter).get("base_model_name_or_path") or "")
    if not named or _same(named, name):
        return ""
    return (
        f"{adapter} was trained on the base {named!r}, and the model here is {name!r}: unless these are the same model "
        "under two names, the adapter means nothing here."
    )


def _same(one: str, other: str) -> bool:
    one, other = short_name(one), short_name(other)
    is_folder = Path(one).is_dir() and Path(other).is_dir()
    return (is_folder and Path(one).samefile(other)) or _SAME_NAMES.get(one, one) == _SAME_NAMES.get(other, other)
