-- Keys with all their states, turned by workers on every replica; custody of the root key; what is left of a key that
-- was destroyed; the internal certificate authority; and MACs on the rows that steer what is read.

-- Keys.

CREATE TABLE keysets (
    id                 uuid PRIMARY KEY,
    keyspace_id        uuid REFERENCES objects (id) ON DELETE CASCADE,
    purpose            text NOT NULL CHECK (purpose IN ('data', 'row-mac', 'audit-sign', 'internal-ca')),
    created_at         timestamptz NOT NULL,
    paused_at          timestamptz,
    paused_by          text,
    last_scheduled_run timestamptz,
    rewrapped_version  integer NOT NULL DEFAULT 1 CHECK (rewrapped_version > 0),
    UNIQUE NULLS NOT DISTINCT (keyspace_id, purpose),
    CHECK ((keyspace_id IS NOT NULL) = (purpose = 'data')),
    CHECK ((paused_at IS NULL) = (paused_by IS NULL))
);
COMMENT ON TABLE keysets IS 'The versions of a key for one keyspace and purpose, or for the installation and a purpose. Its row''s lock lets one change of its keys at a time take place.';
COMMENT ON COLUMN keysets.id IS 'The offset of its schedule is derived from it. Immutable, clear.';
COMMENT ON COLUMN keysets.keyspace_id IS 'NULL for keys of the installation. Immutable, clear.';
COMMENT ON COLUMN keysets.purpose IS 'What its keys are for. Immutable, clear.';
COMMENT ON COLUMN keysets.created_at IS 'Immutable, clear.';
COMMENT ON COLUMN keysets.paused_at IS 'Since when its schedule is paused; NULL when it is not. Mutable, clear.';
COMMENT ON COLUMN keysets.paused_by IS 'The operator who paused it. Mutable, clear.';
COMMENT ON COLUMN keysets.last_scheduled_run IS 'The last occurrence of its schedule that was run or passed over. Mutable, clear.';
COMMENT ON COLUMN keysets.rewrapped_version IS 'The version to which the last rewrap has moved all DEKs, so that its end is stated once. Rises, clear.';

INSERT INTO keysets (id, keyspace_id, purpose, created_at)
    SELECT gen_random_uuid(), id, 'data', updated_at FROM objects WHERE kind = 'Keyspace';

ALTER TABLE keks ALTER COLUMN keyspace_id DROP NOT NULL;
ALTER TABLE keks DROP CONSTRAINT keks_purpose_check;
ALTER TABLE keks ADD CONSTRAINT keks_purpose_check
    CHECK (purpose IN ('data', 'row-mac', 'audit-sign', 'internal-ca') AND (keyspace_id IS NOT NULL) = (purpose = 'data'));
ALTER TABLE keks DROP CONSTRAINT keks_state_check;
ALTER TABLE keks ADD CONSTRAINT keks_state_check
    CHECK (state IN ('pre-active', 'active', 'deactivated', 'compromised', 'destroy-scheduled', 'destroyed'));
ALTER TABLE keks ALTER COLUMN wrapped DROP NOT NULL;
ALTER TABLE keks ADD CONSTRAINT keks_material_until_destroyed CHECK ((wrapped IS NULL) = (state = 'destroyed'));
ALTER TABLE keks DROP CONSTRAINT keks_keyspace_id_purpose_version_key;
ALTER TABLE keks ADD CONSTRAINT keks_version_once UNIQUE NULLS NOT DISTINCT (keyspace_id, purpose, version);
DROP INDEX keks_one_active;
CREATE UNIQUE INDEX keks_one_active ON keks (keyspace_id, purpose) NULLS NOT DISTINCT WHERE state = 'active';
CREATE UNIQUE INDEX keks_one_pre_active ON keks (keyspace_id, purpose) NULLS NOT DISTINCT WHERE state = 'pre-active';
ALTER TABLE keks
    ADD COLUMN activated_at   timestamptz,
    ADD COLUMN compromised_at timestamptz,
    ADD COLUMN destroy_at     timestamptz,
    ADD COLUMN destroy_asked_by text,
    ADD COLUMN destroy_asked_at timestamptz,
    ADD COLUMN destroyed_at   timestamptz,
    ADD COLUMN generation     bigint NOT NULL DEFAULT 1 CHECK (generation > 0),
    ADD COLUMN mac            bytea NOT NULL DEFAULT '';
UPDATE keks SET activated_at = created_at;
ALTER TABLE keks ALTER COLUMN generation DROP DEFAULT, ALTER COLUMN mac DROP DEFAULT;
ALTER TABLE keks ADD CONSTRAINT keks_destroy_time CHECK ((destroy_at IS NOT NULL) = (state IN ('destroy-scheduled', 'destroyed')));
ALTER TABLE keks ADD CONSTRAINT keks_destroyed_time CHECK ((destroyed_at IS NOT NULL) = (state = 'destroyed'));
COMMENT ON COLUMN keks.keyspace_id IS 'NULL for keys of the installation. Immutable, clear.';
COMMENT ON COLUMN keks.state IS 'NIST SP 800-57 state; a trigger allows legal moves only. Exactly one is active for each keyspace and purpose. Mutable, clear, under the MAC.';
COMMENT ON COLUMN keks.wrapped IS 'The key. Mutable, wrapped by the RWK; NULL once destroyed.';
COMMENT ON COLUMN keks.created_at IS 'Immutable, clear, under the MAC.';
COMMENT ON COLUMN keks.deactivated_at IS 'When it stopped wrapping. Set once, clear, under the MAC.';
COMMENT ON COLUMN keks.activated_at IS 'When it began to wrap; NULL before. Set once, clear, under the MAC.';
COMMENT ON COLUMN keks.compromised_at IS 'When somebody declared it compromised. Set once, clear, under the MAC.';
COMMENT ON COLUMN keks.destroy_at IS 'When it is to be destroyed; NULL when no destruction is scheduled. Mutable, clear, under the MAC.';
COMMENT ON COLUMN keks.destroy_asked_by IS 'Who scheduled that: an operator, or the schedule. Mutable, clear, under the MAC.';
COMMENT ON COLUMN keks.destroy_asked_at IS 'When they did. Mutable, clear, under the MAC.';
COMMENT ON COLUMN keks.destroyed_at IS 'Set once, clear, under the MAC.';
COMMENT ON COLUMN keks.generation IS 'Rises by one with each change of the state. Mutable, clear, under the MAC.';
COMMENT ON COLUMN keks.mac IS 'Version of the row-mac key (4 bytes), then HMAC-SHA256 over all other columns but rwk_id and wrapped. Mutable; clear.';

-- The table of legal moves is the one of core, and a test compares both.
CREATE FUNCTION require_legal_move() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.id <> OLD.id OR NEW.keyspace_id IS DISTINCT FROM OLD.keyspace_id OR NEW.purpose <> OLD.purpose
        OR NEW.version <> OLD.version THEN
        RAISE EXCEPTION 'a key stays what and whose it is' USING ERRCODE = 'check_violation';
    END IF;
    IF NEW.state <> OLD.state AND (OLD.state, NEW.state) NOT IN (
        ('pre-active', 'active'), ('pre-active', 'destroy-scheduled'),
        ('active', 'deactivated'), ('active', 'compromised'),
        ('deactivated', 'compromised'), ('deactivated', 'destroy-scheduled'),
        ('compromised', 'destroy-scheduled'),
        ('destroy-scheduled', 'deactivated'), ('destroy-scheduled', 'compromised'), ('destroy-scheduled', 'destroyed')
    ) THEN
        RAISE EXCEPTION 'a key cannot go from % to %', OLD.state, NEW.state USING ERRCODE = 'check_violation';
    END IF;
    IF OLD.compromised_at IS NOT NULL AND (NEW.compromised_at IS NULL OR NEW.state = 'deactivated') THEN
        RAISE EXCEPTION 'a compromised key stays compromised' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER keks_legal_moves BEFORE UPDATE ON keks FOR EACH ROW EXECUTE FUNCTION require_legal_move();

CREATE TABLE key_epoch (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    epoch     bigint NOT NULL CHECK (epoch >= 0)
);
INSERT INTO key_epoch (epoch) VALUES (0);
COMMENT ON TABLE key_epoch IS 'Rises with each change of a key''s state, or of the root-wrapping key, so that replicas see it by one small read.';
COMMENT ON COLUMN key_epoch.singleton IS 'Always true, so that there is one row. Immutable, clear.';
COMMENT ON COLUMN key_epoch.epoch IS 'Rises by one with each statement. Rises, clear.';

CREATE FUNCTION raise_key_epoch() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    risen bigint;
BEGIN
    UPDATE key_epoch SET epoch = epoch + 1 RETURNING epoch INTO risen;
    PERFORM pg_notify('keyfold_keys', risen::text);
    RETURN NULL;
END
$$;
CREATE TRIGGER keks_raise_epoch AFTER INSERT OR DELETE OR UPDATE OF state ON keks
    FOR EACH STATEMENT EXECUTE FUNCTION raise_key_epoch();
CREATE TRIGGER root_wrapping_keys_raise_epoch AFTER INSERT OR UPDATE OR DELETE ON root_wrapping_keys
    FOR EACH STATEMENT EXECUTE FUNCTION raise_key_epoch();

CREATE TABLE replicas (
    id           uuid PRIMARY KEY,
    name         text NOT NULL CHECK (octet_length(name) <= 256),
    version      text NOT NULL,
    started_at   timestamptz NOT NULL,
    heartbeat_at timestamptz NOT NULL,
    key_epoch    bigint NOT NULL,
    failed_keks  uuid[] NOT NULL DEFAULT '{}',
    failure      text
);
COMMENT ON TABLE replicas IS 'One row a running server. Rows of those that have long been silent are removed.';
COMMENT ON COLUMN replicas.id IS 'Made anew with each start. Immutable, clear.';
COMMENT ON COLUMN replicas.name IS 'The host''s name, for people. Immutable, clear.';
COMMENT ON COLUMN replicas.version IS 'The server''s version. Immutable, clear.';
COMMENT ON COLUMN replicas.started_at IS 'By Postgres'' clock. Immutable, clear.';
COMMENT ON COLUMN replicas.heartbeat_at IS 'By Postgres'' clock. A replica that cannot write it stops encrypting. Mutable, clear.';
COMMENT ON COLUMN replicas.key_epoch IS 'The epoch whose keys it holds and has tested. Mutable, clear.';
COMMENT ON COLUMN replicas.failed_keks IS 'Pre-active keys that it cannot use: those alone do not become active while it lives. Mutable, clear.';
COMMENT ON COLUMN replicas.failure IS 'What is wrong with it, for people; NULL when nothing is. Mutable, clear.';

-- A replica that has not yet heard of a key's turn must not write under the old key. The lock is an advisory one, which
-- queues in order: shared locks on the key's row could keep a turn waiting for as long as somebody writes. A turn takes
-- it alone before it changes the state.
CREATE FUNCTION lock_keyset(keyspace uuid, alone boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF alone THEN
        PERFORM pg_advisory_xact_lock(7209, hashtext(coalesce(keyspace::text, '')));
    ELSE
        PERFORM pg_advisory_xact_lock_shared(7209, hashtext(coalesce(keyspace::text, '')));
    END IF;
END
$$;
DROP TRIGGER deks_under_active_kek ON deks;
DROP FUNCTION require_active_kek();
CREATE FUNCTION require_active_keks() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    wrong uuid;
BEGIN
    PERFORM lock_keyset(keyspace_id, false) FROM (SELECT DISTINCT keyspace_id FROM written ORDER BY keyspace_id) AS k;
    SELECT w.kek_id INTO wrong FROM (SELECT DISTINCT keyspace_id, kek_id FROM written) AS w
        LEFT JOIN keks k ON k.id = w.kek_id AND k.keyspace_id = w.keyspace_id AND k.state = 'active'
        WHERE k.id IS NULL LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'KEK % is not active', wrong USING ERRCODE = 'serialization_failure';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER deks_inserted_under_active_kek AFTER INSERT ON deks REFERENCING NEW TABLE AS written
    FOR EACH STATEMENT EXECUTE FUNCTION require_active_keks();
CREATE TRIGGER deks_moved_under_active_kek AFTER UPDATE ON deks REFERENCING NEW TABLE AS written
    FOR EACH STATEMENT EXECUTE FUNCTION require_active_keks();

ALTER TABLE deks ADD COLUMN born_kek_version integer;
UPDATE deks SET born_kek_version = kek_version;
ALTER TABLE deks ALTER COLUMN born_kek_version SET NOT NULL;
ALTER TABLE deks ADD CONSTRAINT deks_born_before CHECK (born_kek_version <= kek_version);
CREATE INDEX deks_by_birth ON deks (keyspace_id, born_kek_version);
COMMENT ON COLUMN deks.born_kek_version IS 'The version of the KEK that wrapped it first. Every version from that one to the present may have wrapped it, and opens it out of a backup. Immutable, clear.';

CREATE TABLE quarantined_deks (
    dek_id      uuid PRIMARY KEY REFERENCES deks (id) ON DELETE CASCADE,
    keyspace_id uuid NOT NULL REFERENCES objects (id) ON DELETE RESTRICT,
    kek_id      uuid NOT NULL,
    kek_version integer NOT NULL,
    reason      text NOT NULL,
    found_at    timestamptz NOT NULL,
    FOREIGN KEY (kek_id, kek_version) REFERENCES keks (id, version) ON DELETE RESTRICT
);
CREATE INDEX quarantined_deks_by_keyspace ON quarantined_deks (keyspace_id, kek_version);
COMMENT ON TABLE quarantined_deks IS 'DEKs that a rewrap or re-encryption could not open. It passes them over, and their key is not destroyed.';
COMMENT ON COLUMN quarantined_deks.dek_id IS 'Immutable, clear.';
COMMENT ON COLUMN quarantined_deks.keyspace_id IS 'Immutable, clear.';
COMMENT ON COLUMN quarantined_deks.kek_id IS 'The key that wraps it. Immutable, clear.';
COMMENT ON COLUMN quarantined_deks.kek_version IS 'That key''s version. Immutable, clear.';
COMMENT ON COLUMN quarantined_deks.reason IS 'What does not open, without material. Immutable, clear.';
COMMENT ON COLUMN quarantined_deks.found_at IS 'Immutable, clear.';

ALTER TABLE secret_versions ADD COLUMN exposed_at timestamptz;
ALTER TABLE secret_versions ADD COLUMN exposed_kek_version integer;
ALTER TABLE secret_versions ADD CONSTRAINT secret_versions_exposed CHECK ((exposed_at IS NULL) = (exposed_kek_version IS NULL));
CREATE INDEX secret_versions_exposed ON secret_versions (secret_id, version) WHERE exposed_at IS NOT NULL;
COMMENT ON COLUMN secret_versions.exposed_at IS 'When a key that had wrapped its DEK was declared compromised: the secret itself is to be rotated; NULL when none was. Mutable, clear.';
COMMENT ON COLUMN secret_versions.exposed_kek_version IS 'The version of that key. Mutable, clear.';
COMMENT ON COLUMN secret_versions.payload IS 'The fields. Encrypted under the version''s DEK, bound to path, created_at and created_by. Changes with a deep re-encryption, NULL once destroyed.';

CREATE TABLE destruction_certificates (
    kek_id      uuid PRIMARY KEY,
    keyspace    text NOT NULL,
    purpose     text NOT NULL,
    version     integer NOT NULL,
    certificate text NOT NULL,
    created_at  timestamptz NOT NULL
);
COMMENT ON TABLE destruction_certificates IS 'Signed proofs of keys'' destruction. They outlive the keyspace, so nothing is referenced.';
COMMENT ON COLUMN destruction_certificates.kek_id IS 'The key that was destroyed. Immutable, clear.';
COMMENT ON COLUMN destruction_certificates.keyspace IS 'Its keyspace''s name then; empty for keys of the installation. Immutable, clear.';
COMMENT ON COLUMN destruction_certificates.purpose IS 'Immutable, clear.';
COMMENT ON COLUMN destruction_certificates.version IS 'Immutable, clear.';
COMMENT ON COLUMN destruction_certificates.certificate IS 'The signed text. Immutable, clear.';
COMMENT ON COLUMN destruction_certificates.created_at IS 'Immutable, clear.';
CREATE TRIGGER destruction_certificates_only_grow BEFORE UPDATE OR DELETE ON destruction_certificates
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER destruction_certificates_never_emptied BEFORE TRUNCATE ON destruction_certificates
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- The internal certificate authority.

CREATE TABLE ca_certificates (
    version     integer PRIMARY KEY CHECK (version > 0),
    state       text NOT NULL CHECK (state IN ('next', 'active', 'retired')),
    certificate bytea NOT NULL,
    kek_id      uuid,
    kek_version integer,
    wrapped_key bytea,
    created_at  timestamptz NOT NULL,
    expires_at  timestamptz NOT NULL,
    activated_at timestamptz,
    retired_at  timestamptz,
    mac         bytea NOT NULL,
    FOREIGN KEY (kek_id, kek_version) REFERENCES keks (id, version) ON DELETE RESTRICT,
    CHECK ((wrapped_key IS NULL) = (state = 'retired')),
    CHECK ((kek_id IS NULL) = (wrapped_key IS NULL))
);
CREATE UNIQUE INDEX ca_certificates_one_active ON ca_certificates (state) WHERE state = 'active';
CREATE UNIQUE INDEX ca_certificates_one_next ON ca_certificates (state) WHERE state = 'next';
COMMENT ON TABLE ca_certificates IS 'Certificates of the internal authority. The bundle holds those that have not expired.';
COMMENT ON COLUMN ca_certificates.version IS 'Counts up from 1. Immutable, clear.';
COMMENT ON COLUMN ca_certificates.state IS 'next: trusted, does not sign yet; active: signs; retired: trusted until it expires. Mutable, clear, under the MAC.';
COMMENT ON COLUMN ca_certificates.certificate IS 'DER. Immutable, clear, under the MAC.';
COMMENT ON COLUMN ca_certificates.kek_id IS 'Which key of purpose internal-ca wraps the private key. Mutable, clear.';
COMMENT ON COLUMN ca_certificates.kek_version IS 'That key''s version. Mutable, clear.';
COMMENT ON COLUMN ca_certificates.wrapped_key IS 'The private key. Mutable, wrapped by the KEK; NULL once retired.';
COMMENT ON COLUMN ca_certificates.created_at IS 'Immutable, clear, under the MAC.';
COMMENT ON COLUMN ca_certificates.expires_at IS 'The certificate''s end. Immutable, clear, under the MAC.';
COMMENT ON COLUMN ca_certificates.activated_at IS 'When it began to sign. Set once, clear, under the MAC.';
COMMENT ON COLUMN ca_certificates.retired_at IS 'When it stopped. Set once, clear, under the MAC.';
COMMENT ON COLUMN ca_certificates.mac IS 'Version of the row-mac key (4 bytes), then HMAC-SHA256 over all other columns but kek_id, kek_version and wrapped_key. Mutable; clear.';

-- Destruction: material goes only once nothing needs it. The second of the proofs counts again, over every table of the
-- catalog; this one stands whatever a server does.
CREATE FUNCTION require_unneeded() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    referring record;
    found_one boolean;
BEGIN
    IF NEW.wrapped IS NULL AND OLD.wrapped IS NOT NULL THEN
        FOR referring IN
            SELECT c.conrelid::regclass AS relation,
                   (SELECT a.attname FROM pg_attribute a WHERE a.attrelid = c.conrelid AND a.attnum = c.conkey[
                       array_position(c.confkey, (SELECT i.attnum FROM pg_attribute i WHERE i.attrelid = c.confrelid AND i.attname = 'id'))]) AS referring_column
            FROM pg_constraint c WHERE c.contype = 'f' AND c.confrelid = 'keks'::regclass
        LOOP
            EXECUTE format('SELECT EXISTS (SELECT 1 FROM %s WHERE %I = $1)', referring.relation, referring.referring_column)
                INTO found_one USING OLD.id;
            IF found_one THEN
                RAISE EXCEPTION 'key % is still needed by %', OLD.id, referring.relation USING ERRCODE = 'foreign_key_violation';
            END IF;
        END LOOP;
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER keks_destroyed_when_unneeded BEFORE UPDATE OF wrapped ON keks FOR EACH ROW EXECUTE FUNCTION require_unneeded();

-- The root key's custody.

ALTER TABLE root_wrapping_keys
    ADD COLUMN custody_kind    text NOT NULL DEFAULT 'file' CHECK (custody_kind IN ('file', 'pkcs11', 'kms-plugin', 'shamir')),
    ADD COLUMN custody         bytea NOT NULL DEFAULT '',
    ADD COLUMN recovery_wrapped bytea;


COMMENT ON COLUMN root_wrapping_keys.custody_kind IS 'How the root key is kept. Mutable, clear.';
COMMENT ON COLUMN root_wrapping_keys.custody IS 'What its keeper needs to give it again, such as its ciphertext under a key of an HSM. Mutable, encrypted by the keeper or public.';
COMMENT ON COLUMN root_wrapping_keys.recovery_wrapped IS 'The RWK once more. Mutable, wrapped by the recovery key; NULL without one.';

CREATE TABLE recovery_keys (
    id              uuid PRIMARY KEY,
    rwk_id          uuid NOT NULL REFERENCES root_wrapping_keys (id) ON DELETE RESTRICT,
    wrapped         bytea NOT NULL,
    commitments     bytea NOT NULL,
    created_at      timestamptz NOT NULL,
    created_by      text NOT NULL,
    last_drilled_at timestamptz
);
COMMENT ON TABLE recovery_keys IS 'The recovery key, one row at most. People hold its shares, and it seals a second copy of the RWK.';
COMMENT ON COLUMN recovery_keys.id IS 'Computed from the key. Immutable, clear.';
COMMENT ON COLUMN recovery_keys.rwk_id IS 'Which RWK wraps it. Mutable, clear.';
COMMENT ON COLUMN recovery_keys.wrapped IS 'The recovery key, so that a new RWK can be sealed for it without the shares. Mutable, wrapped by the RWK.';
COMMENT ON COLUMN recovery_keys.commitments IS 'Number and threshold of the shares, and a salted hash of each. Immutable, hashed.';
COMMENT ON COLUMN recovery_keys.created_at IS 'Immutable, clear.';
COMMENT ON COLUMN recovery_keys.created_by IS 'The operator. Immutable, clear.';
COMMENT ON COLUMN recovery_keys.last_drilled_at IS 'When its shares last opened a backup. Mutable, clear.';

-- Integrity of the rows that steer what is read.

ALTER TABLE objects ADD COLUMN mac bytea NOT NULL DEFAULT '';
ALTER TABLE objects ALTER COLUMN mac DROP DEFAULT;
COMMENT ON COLUMN objects.mac IS 'Version of the row-mac key (4 bytes), then HMAC-SHA256 over id, kind, name, spec and generation. Mutable; clear.';
ALTER TABLE admin_tokens ADD COLUMN mac bytea NOT NULL DEFAULT '';
ALTER TABLE admin_tokens ALTER COLUMN mac DROP DEFAULT;
COMMENT ON COLUMN admin_tokens.mac IS 'The same over id, name, token_hash and revoked_at. Mutable; clear.';
ALTER TABLE plans ADD COLUMN mac bytea NOT NULL DEFAULT '';
ALTER TABLE plans ALTER COLUMN mac DROP DEFAULT;
COMMENT ON COLUMN plans.mac IS 'The same over all other columns, of the plan over its SHA-256. Mutable; clear.';
ALTER TABLE secret_labels ADD COLUMN mac bytea NOT NULL DEFAULT '';
ALTER TABLE secret_labels ALTER COLUMN mac DROP DEFAULT;
COMMENT ON COLUMN secret_labels.mac IS 'The same over secret_id, label, version and generation. Mutable; clear.';
ALTER TABLE secret_versions ADD COLUMN generation bigint NOT NULL DEFAULT 1 CHECK (generation > 0);
ALTER TABLE secret_versions ALTER COLUMN generation DROP DEFAULT;
ALTER TABLE secret_versions ADD COLUMN mac bytea NOT NULL DEFAULT '';
ALTER TABLE secret_versions ALTER COLUMN mac DROP DEFAULT;
COMMENT ON COLUMN secret_versions.generation IS 'Rises by one when it is hidden, brought back, exposed or destroyed. Mutable, clear, under the MAC.';
COMMENT ON COLUMN secret_versions.mac IS 'The same over secret_id, version, generation, deleted_at, destroyed_at, exposed_at and exposed_kek_version. Mutable; clear.';

CREATE TABLE integrity_head (
    singleton       boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    generation      bigint NOT NULL CHECK (generation >= 0),
    declared_digest bytea NOT NULL CHECK (octet_length(declared_digest) = 32),
    keys_digest     bytea NOT NULL CHECK (octet_length(keys_digest) = 32),
    secrets_sum     bigint NOT NULL CHECK (secrets_sum >= 0),
    used_plans      bytea NOT NULL,
    audit_index     bigint NOT NULL CHECK (audit_index >= 0),
    mac             bytea NOT NULL
);
COMMENT ON TABLE integrity_head IS 'What the guarded rows come to, as of their last change. Old rows with their old MACs do not come to it.';
COMMENT ON COLUMN integrity_head.singleton IS 'Always true, so that there is one row. Immutable, clear.';
COMMENT ON COLUMN integrity_head.generation IS 'Rises by one with each change of guarded rows; the entry of that change states it. Rises, clear, under the MAC.';
COMMENT ON COLUMN integrity_head.declared_digest IS 'SHA-256 over the MACs of objects and admin_tokens, by id. Mutable, hashed, under the MAC.';
COMMENT ON COLUMN integrity_head.keys_digest IS 'SHA-256 over the MACs of keks, by id. Mutable, hashed, under the MAC.';
COMMENT ON COLUMN integrity_head.secrets_sum IS 'The sum of the generations of secret_labels and secret_versions: none of them ever falls. Rises, clear, under the MAC.';
COMMENT ON COLUMN integrity_head.used_plans IS 'Plans that were used, each as its id and its expiry in microseconds since 1970, until a week after that. Mutable, clear, under the MAC.';
COMMENT ON COLUMN integrity_head.audit_index IS 'Index of the entry of the last change. Rises, clear, under the MAC.';
COMMENT ON COLUMN integrity_head.mac IS 'Version of the row-mac key (4 bytes), then HMAC-SHA256 over all other columns. Mutable; clear.';

ALTER TABLE audit_entries ADD COLUMN generation bigint;
CREATE INDEX audit_entries_generation ON audit_entries (index) WHERE generation IS NOT NULL;
COMMENT ON COLUMN audit_entries.generation IS 'Copy of the generation of the integrity head, where the operation raised it. Immutable, clear.';

-- A plan is signed once and used once, whoever writes.
CREATE FUNCTION require_plan_set_once() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (OLD.used_at IS NOT NULL AND NEW.used_at IS DISTINCT FROM OLD.used_at)
        OR (OLD.signature IS NOT NULL AND NEW.signature IS DISTINCT FROM OLD.signature) THEN
        RAISE EXCEPTION 'a plan is signed once and used once' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER plans_set_once BEFORE UPDATE ON plans FOR EACH ROW EXECUTE FUNCTION require_plan_set_once();
