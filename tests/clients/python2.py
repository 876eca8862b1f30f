"""The Python SDK 2.x as a client: `python2.py URL legacy|auto|2026-07-28`."""

import asyncio
import sys
import warnings

from mcp import Client, types
from probes import report, until

warnings.simplefilter("ignore")


async def elicit(context, params):
    field = next(iter(params.requested_schema["properties"]))
    return types.ElicitResult(action="accept", content={field: "Ada"})


async def sample(context, params):
    answer = types.TextContent(type="text", text="Paris")
    return types.CreateMessageResult(role="assistant", model="none", content=answer)


async def roots(context):
    return types.ListRootsResult(roots=[types.Root(uri="file:///somewhere", name="somewhere")])


async def main(url, mode):
    logged, told = [], []

    async def log(params):
        logged.append(params.data)

    async def tell(message):
        told.append(type(message).__name__)

    able = {"elicitation_callback": elicit, "sampling_callback": sample, "list_roots_callback": roots}
    heard = {"logging_callback": log, "log_level": "debug", "message_handler": tell}
    async with Client(url, mode=mode, **able, **heard) as client:
        modern = client.protocol_version >= "2026"

        async def text(name, arguments=None, **more):
            result = await client.call_tool(name, arguments or {}, **more)
            return result.content[0].text

        async def progress():
            steps = []

            async def step(progress, total, message):
                steps.append(progress)

            await text("test_tool_with_progress", progress_callback=step)
            await until(lambda: len(steps) == 3)
            return steps

        async def logs():
            if not modern:
                await client.set_logging_level("debug")
            await text("test_tool_with_logging")
            return await until(lambda: len(logged) == 3)

        async def cancel():
            task = asyncio.create_task(text("wait", {"seconds": 600}))
            await asyncio.sleep(0.5)
            task.cancel()
            return (await asyncio.gather(task, return_exceptions=True))[0].__class__.__name__

        async def updates():
            uri = "test://watched-resource"
            if modern:
                async with client.listen(tools_list_changed=True) as events:
                    await text("test_trigger_tool_change")
                    return type(await anext(aiter(events))).__name__
            await client.subscribe_resource(uri)
            await text("touch", {"uri": uri})
            await until(lambda: "ResourceUpdatedNotification" in told)
            await client.unsubscribe_resource(uri)
            return "ResourceUpdated"

        old, new = "test_", "test_input_required_result_"
        names = [f"{new if modern else old}{name}" for name in ("elicitation", "sampling")]
        names.append(f"{new}list_roots" if modern else "ask_roots")
        await report(
            {
                "version": lambda: asyncio.sleep(0, client.protocol_version),
                "tools": lambda: count(client),
                "text": lambda: text("test_simple_text"),
                "progress": progress,
                "logs": logs,
                "updates": updates,
                "elicitation": lambda: text(names[0], {} if modern else {"message": "who?"}),
                "sampling": lambda: text(names[1], {} if modern else {"prompt": "which?"}),
                "roots": lambda: text(names[2]),
                "cancel": cancel,
            }
        )


async def count(client):
    return len((await client.list_tools()).tools)


asyncio.run(main(*sys.argv[1:3]))
