-- Appends audit entries. As a transaction of its own that is one statement, and nothing travels while the log's head row is
-- locked.
--
-- An allowance rests on declared objects as they were read, on administrators' tokens, and where it is given on the
-- revision of all that is declared and on the generation of the integrity head. Each statement below sees what was
-- committed before it began, so all this is looked at as it is once the head row is locked. Gives the first entry's index;
-- null when something does not stand, or this cannot be known, and then nothing is written.
CREATE FUNCTION append_audit_entries(
    entries_at timestamptz, operations text[], actors text[], outcomes text[],
    -- Those of all entries one after the other, and of each entry the places of its first and last one.
    all_paths text[], first_paths integer[], last_paths integer[],
    entries bytea[], leaf_hashes bytea[], entry_generations bigint[],
    object_ids uuid[], object_generations bigint[], live_admin_tokens text[],
    wanted_revision bigint, wanted_generation bigint
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    first_index bigint;
    stands boolean;
BEGIN
    -- In any other isolation all statements see one moment, which is before the lock.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RETURN NULL;
    END IF;
    -- Until the transaction ends, as every transaction of the server has them.
    PERFORM set_config('synchronous_commit', 'on', true), set_config('lock_timeout', '10s', true);
    SELECT size INTO STRICT first_index FROM audit_head FOR UPDATE;
    SELECT NOT EXISTS (SELECT FROM UNNEST(object_ids, object_generations) AS wanted (id, generation)
                       WHERE NOT EXISTS (SELECT FROM objects AS found
                                         WHERE found.id = wanted.id AND found.generation = wanted.generation))
       AND NOT EXISTS (SELECT FROM UNNEST(live_admin_tokens) AS wanted (name)
                       WHERE NOT EXISTS (SELECT FROM admin_tokens AS found
                                         WHERE found.name = wanted.name AND found.revoked_at IS NULL))
       AND (wanted_revision IS NULL OR EXISTS (SELECT FROM object_revision WHERE revision = wanted_revision))
       AND (wanted_generation IS NULL OR EXISTS (SELECT FROM integrity_head WHERE generation = wanted_generation))
    INTO stands;
    IF NOT stands THEN
        RETURN NULL;
    END IF;
    UPDATE audit_head SET size = first_index + cardinality(operations);
    INSERT INTO audit_entries (index, at, operation, actor, outcome, paths, entry, leaf_hash, generation)
    SELECT first_index + new.place - 1, entries_at, new.operation, new.actor, new.outcome,
           all_paths[new.first_path:new.last_path], new.entry, new.leaf_hash, new.generation
    FROM UNNEST(operations, actors, outcomes, first_paths, last_paths, entries, leaf_hashes, entry_generations)
         WITH ORDINALITY AS new (operation, actor, outcome, first_path, last_path, entry, leaf_hash, generation, place);
    RETURN first_index;
END
$$;
