-- The installation, its keys, what operators declare, secrets, and the audit log.
-- Each column says whether it changes and whether it is encrypted. "Wrapped" means: an envelope blob.

CREATE TABLE installation (
    singleton  boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    id         uuid NOT NULL,
    created_at timestamptz NOT NULL
);
COMMENT ON TABLE installation IS 'One row once the installation is initialised; none before.';
COMMENT ON COLUMN installation.singleton IS 'Always true, so that there is one row. Immutable, clear.';
COMMENT ON COLUMN installation.id IS 'Binds every blob to this installation. Immutable, clear.';
COMMENT ON COLUMN installation.created_at IS 'When it was initialised. Immutable, clear.';

CREATE TABLE root_wrapping_keys (
    id          uuid PRIMARY KEY,
    version     integer NOT NULL UNIQUE CHECK (version > 0),
    root_key_id uuid NOT NULL,
    wrapped     bytea NOT NULL,
    created_at  timestamptz NOT NULL
);
COMMENT ON TABLE root_wrapping_keys IS 'The root-wrapping key (RWK): wraps the KEKs; sealed by the root key, which is not in Postgres.';
COMMENT ON COLUMN root_wrapping_keys.id IS 'Names the key in the header of blobs that it wraps. Immutable, clear.';
COMMENT ON COLUMN root_wrapping_keys.version IS 'Counts up from 1; the highest is in use. Immutable, clear.';
COMMENT ON COLUMN root_wrapping_keys.root_key_id IS 'Which root key seals it, computed from that key. Mutable, clear.';
COMMENT ON COLUMN root_wrapping_keys.wrapped IS 'The RWK. Mutable, wrapped by the root key.';
COMMENT ON COLUMN root_wrapping_keys.created_at IS 'When it was made. Immutable, clear.';

CREATE TABLE admin_tokens (
    id         uuid PRIMARY KEY,
    name       text NOT NULL UNIQUE,
    token_hash bytea NOT NULL UNIQUE CHECK (octet_length(token_hash) = 32),
    created_at timestamptz NOT NULL,
    revoked_at timestamptz
);
COMMENT ON TABLE admin_tokens IS 'Initial administrators. The tokens are 256 random bits, shown once and not kept.';
COMMENT ON COLUMN admin_tokens.id IS 'Immutable, clear.';
COMMENT ON COLUMN admin_tokens.name IS 'How audit entries name the operator. Immutable, clear.';
COMMENT ON COLUMN admin_tokens.token_hash IS 'SHA-256 of the token; nothing slower is needed for 256 random bits. Immutable, hashed.';
COMMENT ON COLUMN admin_tokens.created_at IS 'Immutable, clear.';
COMMENT ON COLUMN admin_tokens.revoked_at IS 'When it stopped being valid. Set once, clear.';

CREATE TABLE objects (
    id         uuid PRIMARY KEY,
    kind       text NOT NULL CHECK (kind IN ('Keyspace', 'Issuer', 'AppRole')),
    name       text NOT NULL COLLATE "C",
    spec       text NOT NULL,
    generation bigint NOT NULL CHECK (generation > 0),
    updated_at timestamptz NOT NULL,
    UNIQUE (kind, name)
);
COMMENT ON TABLE objects IS 'What operators declare: keyspaces, issuers, app roles.';
COMMENT ON COLUMN objects.id IS 'A keyspace''s id binds its blobs. Immutable, clear.';
COMMENT ON COLUMN objects.kind IS 'Immutable, clear.';
COMMENT ON COLUMN objects.name IS 'Unique within the kind. Immutable, clear.';
COMMENT ON COLUMN objects.spec IS 'Canonical JSON as the server wrote it, exact bytes, so that they can be authenticated. Mutable, clear.';
COMMENT ON COLUMN objects.generation IS 'Rises by one with each change; caches are bound to it. Mutable, clear.';
COMMENT ON COLUMN objects.updated_at IS 'When it last changed. Mutable, clear.';

CREATE TABLE keks (
    id             uuid PRIMARY KEY,
    keyspace_id    uuid NOT NULL REFERENCES objects (id) ON DELETE RESTRICT,
    purpose        text NOT NULL CHECK (purpose IN ('data')),
    version        integer NOT NULL CHECK (version > 0),
    state          text NOT NULL CHECK (state IN ('active', 'deactivated')),
    rwk_id         uuid NOT NULL REFERENCES root_wrapping_keys (id) ON DELETE RESTRICT,
    wrapped        bytea NOT NULL,
    created_at     timestamptz NOT NULL,
    deactivated_at timestamptz,
    UNIQUE (keyspace_id, purpose, version),
    UNIQUE (id, version)
);
CREATE UNIQUE INDEX keks_one_active ON keks (keyspace_id, purpose) WHERE state = 'active';
COMMENT ON TABLE keks IS 'Key-encryption keys: wrap the DEKs of one keyspace.';
COMMENT ON COLUMN keks.id IS 'Names this one version''s material in blob headers. Immutable, clear.';
COMMENT ON COLUMN keks.keyspace_id IS 'Immutable, clear.';
COMMENT ON COLUMN keks.purpose IS 'What the key wraps. Immutable, clear.';
COMMENT ON COLUMN keks.version IS 'Counts up from 1 for each keyspace and purpose; never used again. Immutable, clear.';
COMMENT ON COLUMN keks.state IS 'NIST SP 800-57 state. Exactly one is active for each keyspace and purpose. Mutable, clear.';
COMMENT ON COLUMN keks.rwk_id IS 'Which RWK wraps it. Mutable, clear.';
COMMENT ON COLUMN keks.wrapped IS 'The KEK. Mutable, wrapped by the RWK.';
COMMENT ON COLUMN keks.created_at IS 'Immutable, clear.';
COMMENT ON COLUMN keks.deactivated_at IS 'When it stopped wrapping. Set once, clear.';

CREATE TABLE secrets (
    id             uuid PRIMARY KEY,
    keyspace_id    uuid NOT NULL REFERENCES objects (id) ON DELETE RESTRICT,
    path           text NOT NULL COLLATE "C" UNIQUE,
    newest_version integer NOT NULL CHECK (newest_version > 0),
    created_at     timestamptz NOT NULL
);
COMMENT ON TABLE secrets IS 'Secrets by path. A row stays when all versions are destroyed, so no version number is used twice.';
COMMENT ON COLUMN secrets.id IS 'Binds blobs to the secret. Immutable, clear.';
COMMENT ON COLUMN secrets.keyspace_id IS 'Immutable, clear.';
COMMENT ON COLUMN secrets.path IS 'The whole path, keyspace first; byte order. Immutable, clear.';
COMMENT ON COLUMN secrets.newest_version IS 'The highest version number given out. Rises, clear.';
COMMENT ON COLUMN secrets.created_at IS 'Immutable, clear.';

CREATE TABLE secret_versions (
    secret_id    uuid NOT NULL REFERENCES secrets (id) ON DELETE RESTRICT,
    version      integer NOT NULL CHECK (version > 0),
    payload      bytea,
    created_at   timestamptz NOT NULL,
    created_by   text NOT NULL,
    deleted_at   timestamptz,
    destroyed_at timestamptz,
    PRIMARY KEY (secret_id, version),
    CHECK ((payload IS NULL) = (destroyed_at IS NOT NULL))
);
COMMENT ON TABLE secret_versions IS 'Versions of secrets.';
COMMENT ON COLUMN secret_versions.secret_id IS 'Immutable, clear.';
COMMENT ON COLUMN secret_versions.version IS 'Counts up from 1. Immutable, clear.';
COMMENT ON COLUMN secret_versions.payload IS 'The fields. Encrypted under the version''s DEK, bound to path, created_at and created_by. Immutable until destroyed, then NULL.';
COMMENT ON COLUMN secret_versions.created_at IS 'Immutable (authenticated with the payload), clear.';
COMMENT ON COLUMN secret_versions.created_by IS 'The operator''s name. Immutable (authenticated with the payload), clear.';
COMMENT ON COLUMN secret_versions.deleted_at IS 'When it was hidden; NULL when live. Mutable, clear.';
COMMENT ON COLUMN secret_versions.destroyed_at IS 'When payload and DEK were removed. Set once, clear.';

CREATE TABLE deks (
    id          uuid PRIMARY KEY,
    secret_id   uuid NOT NULL,
    version     integer NOT NULL,
    keyspace_id uuid NOT NULL REFERENCES objects (id) ON DELETE RESTRICT,
    kek_id      uuid NOT NULL,
    kek_version integer NOT NULL,
    wrapped     bytea NOT NULL,
    UNIQUE (secret_id, version),
    FOREIGN KEY (secret_id, version) REFERENCES secret_versions (secret_id, version) ON DELETE RESTRICT,
    FOREIGN KEY (kek_id, kek_version) REFERENCES keks (id, version) ON DELETE RESTRICT
);
CREATE INDEX deks_by_kek ON deks (keyspace_id, kek_version, id);
COMMENT ON TABLE deks IS 'Data-encryption keys, one for each version that is not destroyed. Apart from the payload, so that a rewrap moves small rows only.';
COMMENT ON COLUMN deks.id IS 'Names the key in the payload''s header. Immutable, clear.';
COMMENT ON COLUMN deks.secret_id IS 'Immutable, clear.';
COMMENT ON COLUMN deks.version IS 'Immutable, clear.';
COMMENT ON COLUMN deks.keyspace_id IS 'The secret''s keyspace, here for the rewrap''s index. Immutable, clear.';
COMMENT ON COLUMN deks.kek_id IS 'Which KEK wraps it. Mutable by rewrap, clear.';
COMMENT ON COLUMN deks.kek_version IS 'That KEK''s version: the rewrap''s predicate and resume point. Mutable by rewrap, clear.';
COMMENT ON COLUMN deks.wrapped IS 'The DEK. Mutable by rewrap, wrapped by the KEK.';

CREATE TABLE secret_labels (
    secret_id  uuid NOT NULL,
    label      text NOT NULL CHECK (label IN ('current', 'previous', 'pending')),
    version    integer NOT NULL,
    generation bigint NOT NULL CHECK (generation > 0),
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (secret_id, label),
    FOREIGN KEY (secret_id, version) REFERENCES secret_versions (secret_id, version) ON DELETE RESTRICT
);
COMMENT ON TABLE secret_labels IS 'Stage labels: which version is current, previous or pending.';
COMMENT ON COLUMN secret_labels.secret_id IS 'Immutable, clear.';
COMMENT ON COLUMN secret_labels.label IS 'Immutable, clear.';
COMMENT ON COLUMN secret_labels.version IS 'Where the label points. Mutable, clear.';
COMMENT ON COLUMN secret_labels.generation IS 'Rises by one with each move. Mutable, clear.';
COMMENT ON COLUMN secret_labels.updated_at IS 'When it last moved. Mutable, clear.';

CREATE TABLE audit_head (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    size      bigint NOT NULL CHECK (size >= 0)
);
INSERT INTO audit_head (size) VALUES (0);
COMMENT ON TABLE audit_head IS 'The end of the audit log. Locked by each append, so that indexes have neither gaps nor doubles.';
COMMENT ON COLUMN audit_head.singleton IS 'Always true, so that there is one row. Immutable, clear.';
COMMENT ON COLUMN audit_head.size IS 'The number of entries, and so the next index. Rises, clear.';

CREATE TABLE audit_entries (
    index     bigint NOT NULL CHECK (index >= 0),
    at        timestamptz NOT NULL,
    operation text NOT NULL,
    actor     text NOT NULL,
    outcome   text NOT NULL CHECK (outcome IN ('allowed', 'refused')),
    paths     text[] NOT NULL,
    entry     bytea NOT NULL,
    leaf_hash bytea NOT NULL CHECK (octet_length(leaf_hash) = 32),
    PRIMARY KEY (index)
) PARTITION BY RANGE (index);
-- Retention drops whole partitions. The default one takes what no other does.
CREATE TABLE audit_entries_0 PARTITION OF audit_entries FOR VALUES FROM (0) TO (4194304);
CREATE TABLE audit_entries_default PARTITION OF audit_entries DEFAULT;
CREATE INDEX audit_entries_paths ON audit_entries USING gin (paths);
CREATE INDEX audit_entries_actor ON audit_entries (actor, index);
COMMENT ON TABLE audit_entries IS 'The audit log. Rows are only ever added.';
COMMENT ON COLUMN audit_entries.index IS 'Position, from 0, taken from audit_head. Immutable, clear.';
COMMENT ON COLUMN audit_entries.at IS 'Copy of the entry''s time, for filters. Immutable, clear.';
COMMENT ON COLUMN audit_entries.operation IS 'Copy of the operation''s name, for filters. Immutable, clear.';
COMMENT ON COLUMN audit_entries.actor IS 'Copy of the actor''s name, for filters. Immutable, clear.';
COMMENT ON COLUMN audit_entries.outcome IS 'Copy of the outcome, for filters. Immutable, clear.';
COMMENT ON COLUMN audit_entries.paths IS 'Copy of the secret paths concerned, for filters. Immutable, clear.';
COMMENT ON COLUMN audit_entries.entry IS 'The exact bytes that were hashed; the truth. Immutable, clear.';
COMMENT ON COLUMN audit_entries.leaf_hash IS 'SHA-256 of 0x00 and entry (RFC 6962). Immutable, clear.';

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'rows of % are only ever added', TG_TABLE_NAME;
END
$$;
CREATE TRIGGER audit_entries_only_grow BEFORE UPDATE OR DELETE ON audit_entries
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
-- Partitions do not inherit statement triggers.
CREATE TRIGGER audit_entries_never_emptied BEFORE TRUNCATE ON audit_entries
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER audit_entries_never_emptied BEFORE TRUNCATE ON audit_entries_0
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER audit_entries_never_emptied BEFORE TRUNCATE ON audit_entries_default
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE FUNCTION refuse_shrinking() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'UPDATE' OR NEW.size < OLD.size THEN
        RAISE EXCEPTION 'the audit log only grows';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER audit_head_only_grows BEFORE UPDATE OR DELETE ON audit_head
    FOR EACH ROW EXECUTE FUNCTION refuse_shrinking();
CREATE TRIGGER audit_head_never_emptied BEFORE TRUNCATE ON audit_head
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- A replica that has not yet heard of a key's turn must not write under the old key.
CREATE FUNCTION require_active_kek() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM keks WHERE id = NEW.kek_id AND state = 'active' FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'KEK % is not active', NEW.kek_id USING ERRCODE = 'serialization_failure';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER deks_under_active_kek BEFORE INSERT OR UPDATE OF kek_id ON deks
    FOR EACH ROW EXECUTE FUNCTION require_active_kek();
