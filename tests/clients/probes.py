"""What each Python client is asked to do: one JSON object says what came of it, and the test judges that."""

import asyncio
import json
import sys

# An answer that does not come is a result as well.
PATIENCE = 20


async def report(asks):
    """Runs what is asked one after the other, and prints what each has given."""
    found = {}
    for name, ask in asks.items():
        try:
            found[name] = await asyncio.wait_for(ask(), PATIENCE)
        except Exception as error:
            found[name] = f"failed: {type(error).__name__}: {error}"
    json.dump(found, sys.stdout)


async def until(happened):
    """Waits for what is told beside answers."""
    while not happened():
        await asyncio.sleep(0.01)
    return True
