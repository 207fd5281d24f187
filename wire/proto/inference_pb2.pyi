from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Empty(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ForwardRequest(_message.Message):
    __slots__ = ("request_id", "hidden_states", "shape", "dtype", "attention_mask", "attention_mask_shape", "params", "metadata", "past_token_ids", "position")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_STATES_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_MASK_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_MASK_SHAPE_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    PAST_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    hidden_states: bytes
    shape: _containers.RepeatedScalarFieldContainer[int]
    dtype: str
    attention_mask: bytes
    attention_mask_shape: _containers.RepeatedScalarFieldContainer[int]
    params: GenerationParams
    metadata: PipelineMetadata
    past_token_ids: _containers.RepeatedScalarFieldContainer[int]
    position: int
    def __init__(self, request_id: _Optional[str] = ..., hidden_states: _Optional[bytes] = ..., shape: _Optional[_Iterable[int]] = ..., dtype: _Optional[str] = ..., attention_mask: _Optional[bytes] = ..., attention_mask_shape: _Optional[_Iterable[int]] = ..., params: _Optional[_Union[GenerationParams, _Mapping]] = ..., metadata: _Optional[_Union[PipelineMetadata, _Mapping]] = ..., past_token_ids: _Optional[_Iterable[int]] = ..., position: _Optional[int] = ...) -> None: ...

class ForwardResponse(_message.Message):
    __slots__ = ("request_id", "hidden_states", "shape", "dtype", "generated_text", "num_tokens", "latency_ms", "success", "error", "next_token_id", "is_eos", "code")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_STATES_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TEXT_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    NEXT_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    IS_EOS_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    hidden_states: bytes
    shape: _containers.RepeatedScalarFieldContainer[int]
    dtype: str
    generated_text: str
    num_tokens: int
    latency_ms: float
    success: bool
    error: str
    next_token_id: int
    is_eos: bool
    code: str
    def __init__(self, request_id: _Optional[str] = ..., hidden_states: _Optional[bytes] = ..., shape: _Optional[_Iterable[int]] = ..., dtype: _Optional[str] = ..., generated_text: _Optional[str] = ..., num_tokens: _Optional[int] = ..., latency_ms: _Optional[float] = ..., success: _Optional[bool] = ..., error: _Optional[str] = ..., next_token_id: _Optional[int] = ..., is_eos: _Optional[bool] = ..., code: _Optional[str] = ...) -> None: ...

class TokenChunk(_message.Message):
    __slots__ = ("request_id", "token_text", "token_id", "is_finished", "finish_reason")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    IS_FINISHED_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    token_text: str
    token_id: int
    is_finished: bool
    finish_reason: str
    def __init__(self, request_id: _Optional[str] = ..., token_text: _Optional[str] = ..., token_id: _Optional[int] = ..., is_finished: _Optional[bool] = ..., finish_reason: _Optional[str] = ...) -> None: ...

class GenerationParams(_message.Message):
    __slots__ = ("max_new_tokens", "temperature", "top_p", "repetition_penalty", "do_sample", "top_k", "min_p", "seed", "stop", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "json_schema", "eos", "ignore_eos")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    DO_SAMPLE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    JSON_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    EOS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    max_new_tokens: int
    temperature: float
    top_p: float
    repetition_penalty: float
    do_sample: bool
    top_k: int
    min_p: float
    seed: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    presence_penalty: float
    frequency_penalty: float
    logit_bias: _containers.ScalarMap[int, float]
    logprobs: int
    json_schema: str
    eos: _containers.RepeatedScalarFieldContainer[int]
    ignore_eos: bool
    def __init__(self, max_new_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., do_sample: _Optional[bool] = ..., top_k: _Optional[int] = ..., min_p: _Optional[float] = ..., seed: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., logit_bias: _Optional[_Mapping[int, float]] = ..., logprobs: _Optional[int] = ..., json_schema: _Optional[str] = ..., eos: _Optional[_Iterable[int]] = ..., ignore_eos: _Optional[bool] = ...) -> None: ...

class PipelineMetadata(_message.Message):
    __slots__ = ("total_nodes", "node_index", "is_first", "is_last", "requester_address", "original_prompt", "next_node_endpoint")
    TOTAL_NODES_FIELD_NUMBER: _ClassVar[int]
    NODE_INDEX_FIELD_NUMBER: _ClassVar[int]
    IS_FIRST_FIELD_NUMBER: _ClassVar[int]
    IS_LAST_FIELD_NUMBER: _ClassVar[int]
    REQUESTER_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ORIGINAL_PROMPT_FIELD_NUMBER: _ClassVar[int]
    NEXT_NODE_ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    total_nodes: int
    node_index: int
    is_first: bool
    is_last: bool
    requester_address: str
    original_prompt: str
    next_node_endpoint: str
    def __init__(self, total_nodes: _Optional[int] = ..., node_index: _Optional[int] = ..., is_first: _Optional[bool] = ..., is_last: _Optional[bool] = ..., requester_address: _Optional[str] = ..., original_prompt: _Optional[str] = ..., next_node_endpoint: _Optional[str] = ...) -> None: ...

class LayerInfoResponse(_message.Message):
    __slots__ = ("model_name", "layer_start", "layer_end", "total_layers", "device", "is_ready", "model_hash", "next_node_endpoint", "http_endpoint", "dtype", "back_end", "hidden_size", "wire_dtypes", "has_steps")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    LAYER_START_FIELD_NUMBER: _ClassVar[int]
    LAYER_END_FIELD_NUMBER: _ClassVar[int]
    TOTAL_LAYERS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    IS_READY_FIELD_NUMBER: _ClassVar[int]
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    NEXT_NODE_ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    HTTP_ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    BACK_END_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    WIRE_DTYPES_FIELD_NUMBER: _ClassVar[int]
    HAS_STEPS_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    layer_start: int
    layer_end: int
    total_layers: int
    device: str
    is_ready: bool
    model_hash: str
    next_node_endpoint: str
    http_endpoint: str
    dtype: str
    back_end: str
    hidden_size: int
    wire_dtypes: _containers.RepeatedScalarFieldContainer[str]
    has_steps: bool
    def __init__(self, model_name: _Optional[str] = ..., layer_start: _Optional[int] = ..., layer_end: _Optional[int] = ..., total_layers: _Optional[int] = ..., device: _Optional[str] = ..., is_ready: _Optional[bool] = ..., model_hash: _Optional[str] = ..., next_node_endpoint: _Optional[str] = ..., http_endpoint: _Optional[str] = ..., dtype: _Optional[str] = ..., back_end: _Optional[str] = ..., hidden_size: _Optional[int] = ..., wire_dtypes: _Optional[_Iterable[str]] = ..., has_steps: _Optional[bool] = ...) -> None: ...

class PingResponse(_message.Message):
    __slots__ = ("agent_address", "model_name", "layer_start", "layer_end", "is_ready", "uptime_seconds")
    AGENT_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    LAYER_START_FIELD_NUMBER: _ClassVar[int]
    LAYER_END_FIELD_NUMBER: _ClassVar[int]
    IS_READY_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    agent_address: str
    model_name: str
    layer_start: int
    layer_end: int
    is_ready: bool
    uptime_seconds: int
    def __init__(self, agent_address: _Optional[str] = ..., model_name: _Optional[str] = ..., layer_start: _Optional[int] = ..., layer_end: _Optional[int] = ..., is_ready: _Optional[bool] = ..., uptime_seconds: _Optional[int] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("dtype", "shape", "data")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Hop(_message.Message):
    __slots__ = ("endpoint", "start", "end", "wire_dtypes")
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    WIRE_DTYPES_FIELD_NUMBER: _ClassVar[int]
    endpoint: str
    start: int
    end: int
    wire_dtypes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, endpoint: _Optional[str] = ..., start: _Optional[int] = ..., end: _Optional[int] = ..., wire_dtypes: _Optional[_Iterable[str]] = ...) -> None: ...

class Route(_message.Message):
    __slots__ = ("pipeline", "epoch", "hops", "index", "answers")
    PIPELINE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    HOPS_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    pipeline: str
    epoch: int
    hops: _containers.RepeatedCompositeFieldContainer[Hop]
    index: int
    answers: bool
    def __init__(self, pipeline: _Optional[str] = ..., epoch: _Optional[int] = ..., hops: _Optional[_Iterable[_Union[Hop, _Mapping]]] = ..., index: _Optional[int] = ..., answers: _Optional[bool] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("session", "epoch", "positions", "session_pass", "sampling", "history", "prompt_len")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    SESSION_PASS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LEN_FIELD_NUMBER: _ClassVar[int]
    session: str
    epoch: int
    positions: int
    session_pass: str
    sampling: GenerationParams
    history: _containers.RepeatedScalarFieldContainer[int]
    prompt_len: int
    def __init__(self, session: _Optional[str] = ..., epoch: _Optional[int] = ..., positions: _Optional[int] = ..., session_pass: _Optional[str] = ..., sampling: _Optional[_Union[GenerationParams, _Mapping]] = ..., history: _Optional[_Iterable[int]] = ..., prompt_len: _Optional[int] = ...) -> None: ...

class Run(_message.Message):
    __slots__ = ("session", "epoch", "position", "count", "samples", "fills")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    FILLS_FIELD_NUMBER: _ClassVar[int]
    session: str
    epoch: int
    position: int
    count: int
    samples: bool
    fills: bool
    def __init__(self, session: _Optional[str] = ..., epoch: _Optional[int] = ..., position: _Optional[int] = ..., count: _Optional[int] = ..., samples: _Optional[bool] = ..., fills: _Optional[bool] = ...) -> None: ...

class Refill(_message.Message):
    __slots__ = ("session", "epoch", "length", "index")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    session: str
    epoch: int
    length: int
    index: int
    def __init__(self, session: _Optional[str] = ..., epoch: _Optional[int] = ..., length: _Optional[int] = ..., index: _Optional[int] = ...) -> None: ...

class Alternative(_message.Message):
    __slots__ = ("token", "logprob")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    token: int
    logprob: float
    def __init__(self, token: _Optional[int] = ..., logprob: _Optional[float] = ...) -> None: ...

class Sampled(_message.Message):
    __slots__ = ("session", "epoch", "position", "token", "is_eos", "logprob", "top")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    IS_EOS_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    session: str
    epoch: int
    position: int
    token: int
    is_eos: bool
    logprob: float
    top: _containers.RepeatedCompositeFieldContainer[Alternative]
    def __init__(self, session: _Optional[str] = ..., epoch: _Optional[int] = ..., position: _Optional[int] = ..., token: _Optional[int] = ..., is_eos: _Optional[bool] = ..., logprob: _Optional[float] = ..., top: _Optional[_Iterable[_Union[Alternative, _Mapping]]] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("session", "epoch", "code", "detail")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    session: str
    epoch: int
    code: str
    detail: str
    def __init__(self, session: _Optional[str] = ..., epoch: _Optional[int] = ..., code: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class LinkFault(_message.Message):
    __slots__ = ("endpoint", "code", "detail")
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    endpoint: str
    code: str
    detail: str
    def __init__(self, endpoint: _Optional[str] = ..., code: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class StepBatch(_message.Message):
    __slots__ = ("pipeline", "epoch", "number", "group", "route", "closes", "opens", "runs", "hidden", "refills", "tokens", "refusals", "faults", "opened", "compute_s", "checksum")
    PIPELINE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    CLOSES_FIELD_NUMBER: _ClassVar[int]
    OPENS_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_FIELD_NUMBER: _ClassVar[int]
    REFILLS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_FIELD_NUMBER: _ClassVar[int]
    FAULTS_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_S_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    pipeline: str
    epoch: int
    number: int
    group: int
    route: Route
    closes: _containers.RepeatedScalarFieldContainer[str]
    opens: _containers.RepeatedCompositeFieldContainer[Open]
    runs: _containers.RepeatedCompositeFieldContainer[Run]
    hidden: Tensor
    refills: _containers.RepeatedCompositeFieldContainer[Refill]
    tokens: _containers.RepeatedCompositeFieldContainer[Sampled]
    refusals: _containers.RepeatedCompositeFieldContainer[Refusal]
    faults: _containers.RepeatedCompositeFieldContainer[LinkFault]
    opened: _containers.RepeatedScalarFieldContainer[str]
    compute_s: _containers.RepeatedScalarFieldContainer[float]
    checksum: int
    def __init__(self, pipeline: _Optional[str] = ..., epoch: _Optional[int] = ..., number: _Optional[int] = ..., group: _Optional[int] = ..., route: _Optional[_Union[Route, _Mapping]] = ..., closes: _Optional[_Iterable[str]] = ..., opens: _Optional[_Iterable[_Union[Open, _Mapping]]] = ..., runs: _Optional[_Iterable[_Union[Run, _Mapping]]] = ..., hidden: _Optional[_Union[Tensor, _Mapping]] = ..., refills: _Optional[_Iterable[_Union[Refill, _Mapping]]] = ..., tokens: _Optional[_Iterable[_Union[Sampled, _Mapping]]] = ..., refusals: _Optional[_Iterable[_Union[Refusal, _Mapping]]] = ..., faults: _Optional[_Iterable[_Union[LinkFault, _Mapping]]] = ..., opened: _Optional[_Iterable[str]] = ..., compute_s: _Optional[_Iterable[float]] = ..., checksum: _Optional[int] = ...) -> None: ...
