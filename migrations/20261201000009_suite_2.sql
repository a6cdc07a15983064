-- From here on blobs are sealed with suite 2, which servers of before do not open: they would take what a newer one wrote for
-- damaged, and put its data keys into quarantine. This version of the schema keeps them from serving beside newer ones.
COMMENT ON COLUMN deks.wrapped IS 'The DEK. Mutable by rewrap, wrapped by the KEK. Suite 2 where it was written since this version of the schema.';
COMMENT ON COLUMN secret_versions.payload IS 'The fields. Encrypted under the version''s DEK, bound to path, created_at and created_by. Changes with a deep re-encryption, NULL once destroyed. Suite 2 where it was written since this version of the schema.';
