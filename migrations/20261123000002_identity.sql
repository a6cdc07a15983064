-- Operator roles, approval rules and plans; and a revision by which replicas see that what is declared has changed.

ALTER TABLE objects DROP CONSTRAINT objects_kind_check;
ALTER TABLE objects ADD CONSTRAINT objects_kind_check
    CHECK (kind IN ('Keyspace', 'Issuer', 'AppRole', 'OperatorRole', 'ApprovalRule'));
COMMENT ON TABLE objects IS 'What operators declare: keyspaces, issuers, app roles, operator roles, approval rules.';

CREATE TABLE object_revision (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    revision  bigint NOT NULL CHECK (revision >= 0)
);
INSERT INTO object_revision (revision) VALUES (0);
COMMENT ON TABLE object_revision IS 'Rises with each change of objects and admin_tokens, so that a replica sees by one small read whether what it holds still stands.';
COMMENT ON COLUMN object_revision.singleton IS 'Always true, so that there is one row. Immutable, clear.';
COMMENT ON COLUMN object_revision.revision IS 'Rises by one with each statement that changes a row. Rises, clear.';

CREATE FUNCTION raise_object_revision() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    risen bigint;
BEGIN
    UPDATE object_revision SET revision = revision + 1 RETURNING revision INTO risen;
    PERFORM pg_notify('keyfold_objects', risen::text);
    RETURN NULL;
END
$$;
CREATE TRIGGER objects_raise_revision AFTER INSERT OR UPDATE OR DELETE ON objects
    FOR EACH STATEMENT EXECUTE FUNCTION raise_object_revision();
CREATE TRIGGER admin_tokens_raise_revision AFTER INSERT OR UPDATE OR DELETE ON admin_tokens
    FOR EACH STATEMENT EXECUTE FUNCTION raise_object_revision();

CREATE TABLE plans (
    id           uuid PRIMARY KEY,
    operation    text NOT NULL,
    plan         bytea NOT NULL,
    requested_by text NOT NULL,
    requested_at timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL,
    signed_by    text,
    public_key   bytea CHECK (octet_length(public_key) = 32),
    signature    bytea CHECK (octet_length(signature) = 64),
    used_at      timestamptz,
    CHECK ((signed_by IS NULL) = (signature IS NULL) AND (signed_by IS NULL) = (public_key IS NULL)),
    CHECK (used_at IS NULL OR signed_by IS NOT NULL),
    CHECK (signed_by IS DISTINCT FROM requested_by)
);
CREATE INDEX plans_by_expiry ON plans (expires_at);
COMMENT ON TABLE plans IS 'Operations that wait for a second person.';
COMMENT ON COLUMN plans.id IS 'Immutable, clear.';
COMMENT ON COLUMN plans.operation IS 'The operation''s name, as audit entries have it. Immutable, clear.';
COMMENT ON COLUMN plans.plan IS 'The exact plan as JSON; its SHA-256 is signed. Holds no secret. Immutable, clear.';
COMMENT ON COLUMN plans.requested_by IS 'The first person. Immutable, clear.';
COMMENT ON COLUMN plans.requested_at IS 'Immutable, clear.';
COMMENT ON COLUMN plans.expires_at IS 'After this the plan is good for nothing. Immutable, clear.';
COMMENT ON COLUMN plans.signed_by IS 'The second person. Set once, clear.';
COMMENT ON COLUMN plans.public_key IS 'The Ed25519 key that the approval rule named for them. Set once, clear.';
COMMENT ON COLUMN plans.signature IS 'Theirs, over the plan''s hash. Set once, clear.';
COMMENT ON COLUMN plans.used_at IS 'When the operation was done. Set once, clear.';
