"""Lists the tools of any server and calls one, with the Python SDK 2.x, as a client that can do everything:
`call.py URL MODE TOOL ARGUMENTS`."""

import asyncio
import json
import sys

from mcp import Client, types


async def elicit(context, params):
    return types.ElicitResult(action="decline")


async def sample(context, params):
    return types.CreateMessageResult(role="assistant", model="none", content=types.TextContent(type="text", text="-"))


async def roots(context):
    return types.ListRootsResult(roots=[])


async def main(url, mode, tool, arguments):
    able = {"elicitation_callback": elicit, "sampling_callback": sample, "list_roots_callback": roots}
    async with Client(url, mode=mode, **able) as client:
        tools = (await client.list_tools()).tools
        called = await client.call_tool(tool, json.loads(arguments))
        text = "\n".join(content.text for content in called.content if content.type == "text")
        found = {"version": client.protocol_version, "tools": len(tools), "text": text, "failed": called.is_error}
        json.dump(found, sys.stdout)


asyncio.run(main(*sys.argv[1:5]))
