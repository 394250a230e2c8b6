"""What are the attributes of spans called?   OpenTelemetry's names; ours begin with `gateway.`.

The GenAI conventions are of github.com/open-telemetry/semantic-conventions-genai, the others of semantic-conventions
1.44. GenAI's are "in development": what they rename is renamed here.
"""

OPERATION = "gen_ai.operation.name"
FLAVOUR = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_STREAM = "gen_ai.request.stream"
RESPONSE_MODEL = "gen_ai.response.model"
FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"  # seconds
INPUT_TOKENS = "gen_ai.usage.input_tokens"
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"

METHOD = "http.request.method"
HTTP_ROUTE = "http.route"
STATUS = "http.response.status_code"
ERROR = "error.type"
SERVER = "server.address"
PORT = "server.port"

REQUEST_ID = "gateway.request_id"
CALLER = "gateway.caller"
PLAN = "gateway.plan"
POLICY = "gateway.policy"
TIER = "gateway.tier"
RULE = "gateway.rule"
REASON = "gateway.reason"
CACHE = "gateway.cache"
DRAFT = "gateway.draft"
HOLDBACK = "gateway.holdback"
OVERHEAD = "gateway.overhead"  # seconds
COST = "gateway.cost_usd"
VERDICT = "gateway.verdict"
P_COMPLEX = "gateway.verdict.p_complex"
VERDICT_REASON = "gateway.verdict.reason"
VERDICT_SOURCE = "gateway.verdict.source"
PURPOSE = "gateway.call.purpose"  # classify, draft, answer, failover (an answer after a failed one)
ATTEMPT = "gateway.call.attempt"  # from 1, of the calls for an answer
ABORTED = "gateway.call.aborted"  # by us, before the answer was complete

# Values.
PROVIDER = "deepseek"  # the format's flavour, as the GenAI conventions name it
OTHER = "_OTHER"  # an error without a name
OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
}
