-- New paths wait in a list until it is full; then whoever appends next sorts all of them into the index, with the log's head
-- locked, and everybody waits. At the default of 4 MB that took 150 ms and more: so the list is short, and sorted in more often.
ALTER INDEX audit_entries_0_paths_idx SET (gin_pending_list_limit = 256);
ALTER INDEX audit_entries_default_paths_idx SET (gin_pending_list_limit = 256);
