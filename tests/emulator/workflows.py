"""Step Functions: two actions that the Terraform provider asks for and moto does not have.

Step Functions API Reference ValidateStateMachineDefinition: FAIL and the diagnostics, or OK. Here: the language's frame only.
"""

import json
from typing import Any

from moto.stepfunctions.responses import StepFunctionResponse

from .corrections import answers


@answers(StepFunctionResponse)
def validate_state_machine_definition(request: Any) -> Any:
    faults = list(find_faults(request._get_param("definition")))
    diagnostics = [{"severity": "ERROR", "code": "SCHEMA_VALIDATION_FAILED", "message": fault} for fault in faults]
    return 200, {}, json.dumps({"result": "FAIL" if faults else "OK", "diagnostics": diagnostics, "truncated": False})


@answers(StepFunctionResponse)
def list_state_machine_versions(request: Any) -> Any:
    # Nobody here publishes any.
    request.stepfunction_backend.describe_state_machine(request._get_param("stateMachineArn"))
    return 200, {}, json.dumps({"stateMachineVersions": []})


def find_faults(text: str) -> Any:
    try:
        definition = json.loads(text)
    except ValueError as fault:
        yield f"not JSON: {fault}"
        return
    states = definition.get("States", {})
    if definition.get("StartAt") not in states:
        yield "StartAt names no state"
    for name, state in states.items():
        if state.get("Type") not in ("Task", "Pass", "Choice", "Wait", "Succeed", "Fail", "Parallel", "Map"):
            yield f"{name} is of no known type"
        elif "Next" in state and state["Next"] not in states:
            yield f"{name} leads to no state"
