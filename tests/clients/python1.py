"""The Python SDK 1.x as a client, which knows the older era alone: `python1.py URL legacy`."""

import asyncio
import sys

from mcp import ClientSession, types
from mcp.client.streamable_http import streamable_http_client
from probes import report, until
from pydantic import AnyUrl

WATCHED = AnyUrl("test://watched-resource")


async def elicit(context, params):
    field = next(iter(params.requestedSchema["properties"]))
    return types.ElicitResult(action="accept", content={field: "Ada"})


async def sample(context, params):
    answer = types.TextContent(type="text", text="Paris")
    return types.CreateMessageResult(role="assistant", model="none", content=answer)


async def roots(context):
    return types.ListRootsResult(roots=[types.Root(uri="file:///somewhere", name="somewhere")])


async def main(url):
    logged, told = [], []

    async def log(params):
        logged.append(params.data)

    async def tell(message):
        if isinstance(message, types.ServerNotification):
            told.append(type(message.root).__name__)

    heard = {"logging_callback": log, "message_handler": tell}
    able = {"elicitation_callback": elicit, "sampling_callback": sample, "list_roots_callback": roots}
    async with streamable_http_client(url) as (read, write, _), ClientSession(read, write, **able, **heard) as client:
        begun = await client.initialize()

        async def text(name, arguments=None, **more):
            return (await client.call_tool(name, arguments or {}, **more)).content[0].text

        async def progress():
            steps = []

            async def step(progress, total, message):
                steps.append(progress)

            await text("test_tool_with_progress", progress_callback=step)
            await until(lambda: len(steps) == 3)
            return steps

        async def logs():
            await client.set_logging_level("debug")
            await text("test_tool_with_logging")
            return await until(lambda: len(logged) == 3)

        async def updates():
            await client.subscribe_resource(WATCHED)
            await text("touch", {"uri": str(WATCHED)})
            await until(lambda: "ResourceUpdatedNotification" in told)
            await client.unsubscribe_resource(WATCHED)
            return "ResourceUpdated"

        async def cancel():
            # This SDK tells the server nothing when a task is cancelled; what it does have is the notification.
            number = client._request_id
            task = asyncio.create_task(text("wait", {"seconds": 600}))
            await asyncio.sleep(0.5)
            params = types.CancelledNotificationParams(requestId=number)
            cancelled = types.CancelledNotification(method="notifications/cancelled", params=params)
            await client.send_notification(types.ClientNotification(cancelled))
            task.cancel()
            return (await asyncio.gather(task, return_exceptions=True))[0].__class__.__name__

        async def count():
            return len((await client.list_tools()).tools)

        await report(
            {
                "version": lambda: asyncio.sleep(0, begun.protocolVersion),
                "tools": count,
                "text": lambda: text("test_simple_text"),
                "progress": progress,
                "logs": logs,
                "updates": updates,
                "elicitation": lambda: text("test_elicitation", {"message": "who?"}),
                "sampling": lambda: text("test_sampling", {"prompt": "which?"}),
                "roots": lambda: text("ask_roots"),
                "cancel": cancel,
            }
        )


asyncio.run(main(sys.argv[1]))
