"""Everything that the conformance suite asks a server for, on the Python SDK 2.x, which speaks both eras.

`everything.py stdio` is bridged; `everything.py http PORT` is the same server native, which the bridged one is
compared with. Names and texts of tools, resources and prompts are those that the suite looks for.
"""

import asyncio
import base64
import json
import os
import sys

from mcp.server.mcpserver import Context, MCPServer, RequestStateSecurity
from mcp.server.mcpserver.prompts.base import Prompt, UserMessage
from mcp.server.streamable_http import EventMessage, EventStore
from mcp.shared.exceptions import MCPError
from mcp.types import (
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    AudioContent,
    Completion,
    CreateMessageRequest,
    CreateMessageRequestParams,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    EmbeddedResource,
    EmptyResult,
    ImageContent,
    InputRequiredResult,
    ListRootsRequest,
    SamplingMessage,
    SetLevelRequestParams,
    SubscribeRequestParams,
    TextContent,
    TextResourceContents,
    UnsubscribeRequestParams,
)
from pydantic import BaseModel, Field

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
SILENCE = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQAAAAA="
security = RequestStateSecurity(keys=[b"a fixture's key, which protects nothing at all"])
server = MCPServer(name="everything", version="1", request_state_security=security)


def text(words):
    return TextContent(type="text", text=words)


def image():
    return ImageContent(type="image", data=PIXEL, mime_type="image/png")


def embedded(uri, kind, words):
    contents = TextResourceContents(uri=uri, mime_type=kind, text=words)
    return EmbeddedResource(type="resource", resource=contents)


def tool(function):
    """A tool, described by its name: the suite wants a description."""
    return server.tool(description=function.__name__.replace("_", " "))(function)


def prompt(function):
    return server.prompt(description=function.__name__.replace("_", " "))(function)


# Answers of every kind.


@tool
def test_simple_text() -> str:
    return "This is a simple text response for testing."


@tool
def test_image_content() -> list[ImageContent]:
    return [image()]


@tool
def test_audio_content() -> list[AudioContent]:
    return [AudioContent(type="audio", data=SILENCE, mime_type="audio/wav")]


@tool
def test_embedded_resource() -> list[EmbeddedResource]:
    return [embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")]


@tool
def test_multiple_content_types() -> list[TextContent | ImageContent | EmbeddedResource]:
    data = embedded("test://mixed-content-resource", "application/json", '{"test": "data", "value": 123}')
    return [text("Multiple content types test:"), image(), data]


@tool
def test_error_handling() -> str:
    raise RuntimeError("This tool intentionally returns an error for testing")


# What is said while a call runs.


@tool
async def test_tool_with_logging(ctx: Context) -> str:
    for words in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await ctx.info(words)
        await asyncio.sleep(0.05)
    return "Tool with logging executed successfully"


@tool
async def test_tool_with_progress(ctx: Context) -> str:
    for step in (0, 50, 100):
        await ctx.report_progress(progress=step, total=100, message=f"Completed step {step} of 100")
        await asyncio.sleep(0.05)
    return "done"


@tool
async def test_reconnection(ctx: Context) -> str:
    await ctx.close_sse_stream()
    await asyncio.sleep(0.2)
    return "Reconnection test completed"


@tool
async def wait(seconds: float, ctx: Context) -> str:
    """Waits, and says so when it is cancelled."""
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        print("the wait was cancelled", file=sys.stderr, flush=True)
        raise
    return "waited"


@tool
async def hold(path: str, ctx: Context) -> str:
    """Says that it has begun, and answers once a file is there."""
    await ctx.report_progress(progress=1, total=2, message="begun")
    while not os.path.exists(path):
        await asyncio.sleep(0.02)
    return "held"


# What a server of the older era asks its client.


@tool
async def test_sampling(prompt: str, ctx: Context) -> str:
    messages = [SamplingMessage(role="user", content=text(prompt))]
    answer = await ctx.session.create_message(messages=messages, max_tokens=100, related_request_id=ctx.request_id)
    return f"LLM response: {answer.content.text}"


@tool
async def ask_roots(ctx: Context) -> str:
    return ", ".join(str(root.uri) for root in (await ctx.session.list_roots()).roots)


async def elicited(ctx, message, schema):
    answer = await ctx.elicit(message=message, schema=schema)
    content = answer.data.model_dump_json() if answer.action == "accept" else "{}"
    return f"action={answer.action}, content={content}"


class Response(BaseModel):
    response: str = Field(description="what the user says")


class Defaults(BaseModel):
    name: str = Field(default="John Doe")
    age: int = Field(default=30)
    score: float = Field(default=95.5)
    status: str = Field(default="active", json_schema_extra={"enum": ["active", "inactive", "pending"]})
    verified: bool = Field(default=True)


def titled(*names):
    return [{"const": name, "title": name.title()} for name in names]


class Enums(BaseModel):
    untitledSingle: str = Field(json_schema_extra={"enum": ["option1", "option2", "option3"]})
    titledSingle: str = Field(json_schema_extra={"oneOf": titled("low", "medium", "high")})
    untitledMulti: list[str] = Field(json_schema_extra={"items": {"type": "string", "enum": ["read", "write"]}})
    titledMulti: list[str] = Field(json_schema_extra={"items": {"anyOf": titled("bug", "feature", "docs")}})
    legacyEnum: str = Field(json_schema_extra={"enum": ["s", "m"], "enumNames": ["Small", "Medium"]})


@tool
async def test_elicitation(message: str, ctx: Context) -> str:
    return "User response: " + await elicited(ctx, message, Response)


@tool
async def test_elicitation_sep1034_defaults(ctx: Context) -> str:
    return "Elicitation completed: " + await elicited(ctx, "Who are you?", Defaults)


@tool
async def test_elicitation_sep1330_enums(ctx: Context) -> str:
    return "Elicitation completed: " + await elicited(ctx, "Choose", Enums)


# The same in the modern era: a result that asks, and the call again with the answers.


def ask(field="name", kind="string", message="What is your name?"):
    schema = {"type": "object", "properties": {field: {"type": kind}}, "required": [field]}
    return ElicitRequest(params=ElicitRequestFormParams(message=message, requested_schema=schema))


def sample(words):
    messages = [SamplingMessage(role="user", content=text(words))]
    return CreateMessageRequest(params=CreateMessageRequestParams(messages=messages, max_tokens=100))


def required(state=None, **requests):
    return InputRequiredResult(input_requests=requests, request_state=state)


def given(ctx, name, field):
    """What the user has said in answer to the elicitation of this name."""
    answer = (ctx.input_responses or {}).get(name)
    return answer.content.get(field) if isinstance(answer, ElicitResult) and answer.content else None


@tool
async def test_input_required_result_elicitation(ctx: Context) -> str | InputRequiredResult:
    name = given(ctx, "user_name", "name")
    return f"Hello, {name}!" if name else required(user_name=ask())


@tool
async def test_input_required_result_sampling(ctx: Context) -> str | InputRequiredResult:
    answer = (ctx.input_responses or {}).get("capital_question")
    return f"Model said: {answer.content.text}" if answer else required(
        capital_question=sample("What is the capital of France?")
    )


@tool
async def test_input_required_result_list_roots(ctx: Context) -> str | InputRequiredResult:
    answer = (ctx.input_responses or {}).get("client_roots")
    return f"{len(answer.roots)} roots" if answer else required(client_roots=ListRootsRequest())


@tool
async def test_input_required_result_request_state(ctx: Context) -> str | InputRequiredResult:
    if ctx.request_state == "kept" and "confirm" in (ctx.input_responses or {}):
        return "state-ok"
    return required("kept", confirm=ask("ok", "boolean", "Is it so?"))


@tool
async def test_input_required_result_tampered_state(ctx: Context) -> str | InputRequiredResult:
    # That it was changed underway is seen by the SDK.
    return "state-ok" if ctx.request_state else required("kept", confirm=ask("ok", "boolean", "Is it so?"))


@tool
async def test_input_required_result_multiple_inputs(ctx: Context) -> str | InputRequiredResult:
    wanted = {"user_name": ask(), "greeting": sample("Greet me"), "client_roots": ListRootsRequest()}
    return "all there" if wanted.keys() <= (ctx.input_responses or {}).keys() else required("many", **wanted)


@tool
async def test_input_required_result_multi_round(ctx: Context) -> str | InputRequiredResult:
    state = json.loads(ctx.request_state or "{}")
    name, color = given(ctx, "step1", "name"), given(ctx, "step2", "color")
    if state.get("name") and color:
        return f"{state['name']} likes {color}."
    if state and name:
        return required(json.dumps({"name": name}), step2=ask("color", message="Step 2: your favorite color?"))
    return required(json.dumps({"round": 1}), step1=ask(message="Step 1: your name?"))


@tool
async def test_input_required_result_capabilities(ctx: Context) -> InputRequiredResult:
    able = ctx.client_capabilities
    requests = {}
    if able is not None and able.sampling is not None:
        requests["sample"] = sample("Say hello")
    if able is not None and able.elicitation is not None:
        requests["ask"] = ask()
    return required("able", **requests)


@tool
async def test_missing_capability(ctx: Context) -> str:
    able = ctx.session.client_capabilities
    if able is None or able.sampling is None:
        data = {"requiredCapabilities": {"sampling": {}}}
        raise MCPError(code=MISSING_REQUIRED_CLIENT_CAPABILITY, message="sampling is needed", data=data)
    return "able"


@prompt
async def test_input_required_result_prompt(ctx: Context) -> list[UserMessage] | InputRequiredResult:
    context = given(ctx, "user_context", "context")
    if context:
        return [UserMessage(role="user", content=text(f"In the context of {context}"))]
    return required(user_context=ask("context", message="Which context?"))


# Schemas.

SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}


@tool
def json_schema_2020_12_tool() -> str:
    return "ok"


server._tool_manager._tools["json_schema_2020_12_tool"].parameters = SCHEMA



@tool
def test_x_mcp_header(region: str = Field(default="none", json_schema_extra={"x-mcp-header": "Region"})) -> str:
    return f"region={region}"


# Lists that change.


@tool
async def test_trigger_tool_change(ctx: Context) -> str:
    server.add_tool(lambda: "passing", name="passing")
    server.remove_tool("passing")
    await ctx.notify_tools_changed()
    return "changed"


def passing() -> str:
    return "passing"


@tool
async def test_trigger_prompt_change(ctx: Context) -> str:
    server.add_prompt(Prompt.from_function(passing, name="passing", description="passing"))
    server.remove_prompt("passing")
    await ctx.notify_prompts_changed()
    return "changed"


# Resources. Updates of the watched one are told to whoever listens to it: to sessions of the older era that have
# subscribed, and to streams of the modern one.

watching = {}


@server.resource("test://static-text")
def static_text() -> str:
    return "This is the content of the static text resource."


@server.resource("test://static-binary", mime_type="image/png")
def static_binary() -> bytes:
    return base64.b64decode(PIXEL)


@server.resource("test://template/{id}/data", mime_type="application/json")
def template(id: str) -> str:
    return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})


@server.resource("test://watched-resource")
def watched() -> str:
    return "watched"


async def subscribe(ctx, params) -> EmptyResult:
    watching.setdefault(str(params.uri), []).append(ctx.session)
    return EmptyResult()


async def unsubscribe(ctx, params) -> EmptyResult:
    watching.pop(str(params.uri), None)
    return EmptyResult()


async def set_level(ctx, params) -> EmptyResult:
    return EmptyResult()


@tool
async def touch(uri: str, ctx: Context) -> str:
    """Tells whoever has subscribed to a resource that it was updated."""
    for session in watching.get(uri, []):
        await session.send_resource_updated(uri)
    await ctx.notify_resource_updated(uri)
    return f"{len(watching.get(uri, []))} told"


server._lowlevel_server.add_request_handler("logging/setLevel", SetLevelRequestParams, set_level)
server._lowlevel_server.add_request_handler("resources/subscribe", SubscribeRequestParams, subscribe)
server._lowlevel_server.add_request_handler("resources/unsubscribe", UnsubscribeRequestParams, unsubscribe)


# Prompts.


@prompt
def test_simple_prompt() -> list[UserMessage]:
    return [UserMessage(role="user", content=text("This is a simple prompt for testing."))]


@prompt
def test_prompt_with_arguments(arg1: str, arg2: str) -> list[UserMessage]:
    return [UserMessage(role="user", content=text(f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"))]


@prompt
def test_prompt_with_embedded_resource(resourceUri: str) -> list[UserMessage]:
    resource = embedded(resourceUri, "text/plain", "Embedded resource content for testing.")
    last = UserMessage(role="user", content=text("Please process the embedded resource above."))
    return [UserMessage(role="user", content=resource), last]


@prompt
def test_prompt_with_image() -> list[UserMessage]:
    last = UserMessage(role="user", content=text("Please analyze the image above."))
    return [UserMessage(role="user", content=image()), last]


@server.completion()
async def complete(ref, argument, context) -> Completion:
    return Completion(values=[], total=0, has_more=False)


class Kept(EventStore):
    """Events of streams that broke, for clients that come back."""

    def __init__(self):
        self.events = []

    async def store_event(self, stream_id, message):
        self.events.append((stream_id, message))
        return str(len(self.events))

    async def replay_events_after(self, last_event_id, send_callback):
        last = int(last_event_id)
        if not 0 < last <= len(self.events):
            return None
        stream = self.events[last - 1][0]
        for number, (of, message) in enumerate(self.events[last:], last + 1):
            if of == stream and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream


if sys.argv[1] == "http":
    server.run(transport="streamable-http", port=int(sys.argv[2]), event_store=Kept(), retry_interval=100)
else:
    server.run(transport="stdio")
