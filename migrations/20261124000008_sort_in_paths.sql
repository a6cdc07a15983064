-- New paths wait in a list until somebody sorts them into the index over the log's paths. That is whoever
-- appends when the list is full: with the log's head locked, so that everybody waits. So the server sorts it in all the time,
-- with nothing locked, and whoever appends does so only where that has failed for long.
ALTER INDEX audit_entries_0_paths_idx SET (gin_pending_list_limit = 65536);
ALTER INDEX audit_entries_default_paths_idx SET (gin_pending_list_limit = 65536);

-- Gives how many pages of new paths it has sorted in. Only an index's owner may, and the server is not.
CREATE FUNCTION sort_in_audit_paths() RETURNS bigint LANGUAGE sql SECURITY DEFINER SET search_path FROM CURRENT AS $$
    SELECT coalesce(sum(pg_catalog.gin_clean_pending_list(inhrelid)), 0)::bigint
    FROM pg_catalog.pg_inherits WHERE inhparent = 'audit_entries_paths'::pg_catalog.regclass
$$;
