"""The wire of whole models: exact names, numbers and types of every field, and the RPCs of both services."""

from typing import Any

import pytest

from wire.proto import titancompute_pb2 as pb

# Written by hand from the public system's table: number, name, type; `*` is repeated, `map` of text to text.
PUBLIC = {
    "InferenceRequest": (
        "1 client_id string; 2 model string; 3 prompt string; 4 max_tokens int32; 5 temperature float; 6 parameters map"
    ),
    "InferenceResponse": (
        "1 agent_endpoint string; 2 session_token string; 3 expires_at int64; 4 job_id string; "
        "5 estimated_rtt_ms double; 6 agent_id string"
    ),
    "AgentRegistration": (
        "1 agent_id string; 2 endpoint string; 3 total_vram_mb int64; 4 total_ram_mb int64; 5 max_jobs int32; "
        "6 supported_models *string; 7 capabilities map"
    ),
    "RegistrationResponse": "1 status string; 2 message string; 3 heartbeat_interval_seconds int32",
    "HealthUpdate": (
        "1 agent_id string; 2 free_vram_mb int64; 3 free_ram_mb int64; 4 running_jobs int32; 5 queued_jobs int32; "
        "6 cpu_percent double; 7 rtt_ms double; 8 timestamp int64"
    ),
    "HealthAck": "1 agent_id string; 2 status string; 3 message string",
    "StatusRequest": "1 include_agents bool; 2 include_metrics bool",
    "SystemStatus": (
        "1 total_agents int32; 2 healthy_agents int32; 3 total_jobs int32; 4 uptime string; 5 agents *AgentStatus"
    ),
    "AgentStatus": (
        "1 agent_id string; 2 status string; 3 free_vram_mb int64; 4 running_jobs int32; 5 last_heartbeat int64"
    ),
    "StreamRequest": (
        "1 session_token string; 2 model string; 3 prompt string; 4 max_tokens int32; 5 temperature float; "
        "6 stream bool; 7 options map"
    ),
    "StreamResponse": (
        "1 session_token string; 2 content string; 3 done bool; 4 token string; 5 created_at int64; 6 metadata map"
    ),
    "AgentStatusRequest": "1 agent_id string; 2 include_jobs bool",
    "AgentStatusResponse": (
        "1 agent_id string; 2 status string; 3 free_vram_mb int64; 4 free_ram_mb int64; 5 active_sessions int32; "
        "6 total_requests_processed int64; 7 model_loaded string"
    ),
    "DeregistrationRequest": "1 agent_id string; 2 reason string",
    "DeregistrationResponse": "1 status string; 2 message string",
    "PublicKeyRequest": "",
    "PublicKeyResponse": "1 public_key_pem string; 2 algorithm string; 3 issuer string",
}
RPCS = {
    "CoordinatorService": {
        "RequestInference": ("InferenceRequest", False, "InferenceResponse", False),
        "RegisterAgent": ("AgentRegistration", False, "RegistrationResponse", False),
        "ReportHealth": ("HealthUpdate", True, "HealthAck", True),
        "QuerySystemStatus": ("StatusRequest", False, "SystemStatus", False),
        "GetPublicKey": ("PublicKeyRequest", False, "PublicKeyResponse", False),
    },
    "AgentService": {
        "StreamInference": ("StreamRequest", False, "StreamResponse", True),
        "GetStatus": ("AgentStatusRequest", False, "AgentStatusResponse", False),
    },
}
OURS_FROM = 20
_TYPES = {1: "double", 2: "float", 3: "int64", 5: "int32", 8: "bool", 9: "string"}


def _type(field: Any) -> str:
    message = field.message_type
    if message is None:
        return ("*" if field.is_repeated else "") + _TYPES[field.type]
    if message.GetOptions().map_entry:
        assert [_TYPES[each.type] for each in message.fields] == ["string", "string"]
        return "map"
    return ("*" if field.is_repeated else "") + str(message.name)


@pytest.mark.row(59)
def test_every_public_field_has_its_number_and_ours_stand_above() -> None:
    found = {
        name: "; ".join(
            f"{field.number} {field.name} {_type(field)}"
            for field in sorted(message.fields, key=lambda each: each.number)
            if field.number < OURS_FROM
        )
        for name, message in pb.DESCRIPTOR.message_types_by_name.items()
    }
    assert found == PUBLIC


@pytest.mark.row(59)
def test_both_services_have_their_rpcs_and_no_other() -> None:
    assert pb.DESCRIPTOR.package == "titancompute.v1"
    found = {
        name: {
            each.name: (each.input_type.name, each.client_streaming, each.output_type.name, each.server_streaming)
            for each in service.methods
        }
        for name, service in pb.DESCRIPTOR.services_by_name.items()
    }
    assert found == RPCS
