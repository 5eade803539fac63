"""What a run will need and take, before it is queued: memory, time, communication, storage."""
