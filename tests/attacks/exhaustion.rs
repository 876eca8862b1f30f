//! A server, or its disk, tries to use up the agent's memory and room.
