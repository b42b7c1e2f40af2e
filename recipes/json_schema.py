"""Teach a model to answer in JSON that satisfies a schema: data and reward of one's own, in one file.

    rlora train recipes/json_schema.py                (two CPU cores, the bundled model)
    rlora train recipes/json_schema.py --preset toy   (random weights, seconds; for tests)

Each problem has a schema of its own, its answer, which asks for the facts that the question tells. The package
jsonschema comes with vLLM. No result is stated: what a model learns here was not measured.
"""

import itertools
import json
import re
from dataclasses import replace

from rlora.recipe import main
from rlora.recipes import arithmetic
from rlora.tasks import DataConfig, Task
from rlora.types import Problem, SamplingParams

NAMES = ("Ada", "Bruno", "Chen", "Dilek", "Emeka", "Farah", "Goran", "Hana", "Iris", "Jorge")
CITIES = ("Lima", "Oslo", "Pune", "Quito", "Riga", "Sofia")


def read(split, data):
    """Return questions about people; every fifth is for the test."""
    people = [(n, c, 20 + 7 * i % 50) for i, (n, c) in enumerate(itertools.product(NAMES, CITIES))]
    wanted = [person for number, person in enumerate(people) if (number % 5 == 0) == (split == "test")]
    return [_problem(split, *person) for person in wanted]


def _problem(split, name, city, age):
    facts = {"name": {"const": name}, "city": {"const": city}, "age": {"const": age}}
    schema = {"type": "object", "properties": facts, "required": [*facts], "additionalProperties": False}
    question = f"{name} lives in {city} and is {age} years old. Give name, city and age (a number) as JSON."
    return Problem(id=f"{split}/{name}-{city}", question=question, answer=json.dumps(schema), source="json_schema")


def score(completion, problem):
    """Return 1 for JSON that satisfies the schema, a fifth for any JSON object."""
    from jsonschema import Draft202012Validator

    block = re.search(r"```(?:json)?\s*(.*?)```", completion, re.DOTALL)
    try:
        value = json.loads(block[1] if block else completion)
    except (ValueError, RecursionError) as error:
        return 0.0, f"no JSON: {error}"
    if not isinstance(value, dict):  # a lone number is JSON too, and soon all that a policy says
        return 0.0, "no object"
    error = next(Draft202012Validator(json.loads(problem.answer)).iter_errors(value), None)
    return (1.0, "") if error is None else (0.2, error.message[:200])


people = Task(read=read, instruction="Answer with the JSON alone.", judge="json_schema:score")
CHANGES = {"data": DataConfig(name="json_schema:people"), "consensus_penalty": 0.0}
CPU = replace(arithmetic.CPU, run_dir="runs/json-schema", sampling=SamplingParams(max_tokens=64), **CHANGES)
TOY = replace(arithmetic.TOY_PRESET, run_dir="runs/json-schema-toy", **CHANGES)
PRESETS = {"cpu": CPU, "toy": replace(TOY, sampler=replace(TOY.sampler, max_prompt_tokens=400))}

if __name__ == "__main__":
    main(PRESETS, description=__doc__)
