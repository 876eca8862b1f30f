"""fastmcp as a client: `fastmcp4.py URL legacy|auto|2026-07-28`."""

import asyncio
import sys

from fastmcp import Client
from fastmcp.client.elicitation import ElicitResult
from probes import report, until


async def elicit(message, response_type, params, context):
    field = next(iter(params.requested_schema["properties"]))
    return ElicitResult(action="accept", content={field: "Ada"})


async def sample(messages, params, context):
    return "Paris"


async def main(url, mode):
    logged, told = [], []

    async def log(message):
        logged.append(message.data)

    async def tell(message):
        told.append(type(message).__name__)

    able = {"elicitation_handler": elicit, "sampling_handler": sample, "roots": ["file:///somewhere"]}
    async with Client(url, mode=mode, log_handler=log, message_handler=tell, **able) as client:
        modern = client.protocol_version >= "2026"

        async def text(name, arguments=None, **more):
            return (await client.call_tool(name, arguments or {}, **more)).content[0].text

        async def progress():
            steps = []

            async def step(progress, total, message):
                steps.append(progress)

            await text("test_tool_with_progress", progress_handler=step)
            await until(lambda: len(steps) == 3)
            return steps

        async def logs():
            if not modern:
                await client.set_logging_level("debug")
            meta = {"io.modelcontextprotocol/logLevel": "debug"} if modern else None
            await text("test_tool_with_logging", meta=meta)
            return await until(lambda: len(logged) == 3)

        async def count():
            return len(await client.list_tools())

        prefix = "test_input_required_result_" if modern else "test_"
        await report(
            {
                "version": lambda: asyncio.sleep(0, client.protocol_version),
                "tools": count,
                "text": lambda: text("test_simple_text"),
                "progress": progress,
                "logs": logs,
                "elicitation": lambda: text(f"{prefix}elicitation", {} if modern else {"message": "who?"}),
                "sampling": lambda: text(f"{prefix}sampling", {} if modern else {"prompt": "which?"}),
                "roots": lambda: text(f"{prefix}list_roots" if modern else "ask_roots"),
            }
        )


asyncio.run(main(*sys.argv[1:3]))
