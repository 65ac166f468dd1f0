resource "aws_s3_bucket_replication_configuration" "captures" {
  count = var.bucket.replication == null ? 0 : 1

  bucket = aws_s3_bucket.captures.id
  role   = aws_iam_role.replication[0].arn

  rule {
    id     = "everything"
    status = "Enabled"
    filter {}

    # A deletion here is not one there.
    delete_marker_replication {
      status = "Disabled"
    }

    source_selection_criteria {
      sse_kms_encrypted_objects {
        status = "Enabled"
      }
    }

    destination {
      bucket        = var.bucket.replication.bucket_arn
      storage_class = "STANDARD_IA"

      encryption_configuration {
        replica_kms_key_id = var.bucket.replication.kms_key_arn
      }
    }
  }

  depends_on = [aws_s3_bucket_versioning.captures]
}

resource "aws_iam_role" "replication" {
  count = var.bucket.replication == null ? 0 : 1

  name                 = "${var.name}-replication-${local._region}"
  description          = "Copies captures of ${var.name} to the second bucket"
  assume_role_policy   = data.aws_iam_policy_document.assumed_by["s3"].json
  permissions_boundary = var.permissions_boundary_arn
  tags                 = local._tags
}

resource "aws_iam_role_policy" "replication" {
  count = var.bucket.replication == null ? 0 : 1

  name   = "replicate"
  role   = aws_iam_role.replication[0].id
  policy = data.aws_iam_policy_document.replication[0].json
}

data "aws_iam_policy_document" "replication" {
  count = var.bucket.replication == null ? 0 : 1

  statement {
    sid       = "Source"
    actions   = ["s3:GetReplicationConfiguration", "s3:ListBucket"]
    resources = [local._bucket_arn]
  }

  statement {
    sid       = "SourceObjects"
    actions   = ["s3:GetObjectVersionAcl", "s3:GetObjectVersionForReplication", "s3:GetObjectVersionTagging"]
    resources = ["${local._bucket_arn}/*"]
  }

  statement {
    sid       = "Copies"
    actions   = ["s3:ReplicateObject", "s3:ReplicateTags"]
    resources = ["${var.bucket.replication.bucket_arn}/*"]
  }

  statement {
    sid       = "ReadEncrypted"
    actions   = ["kms:Decrypt"]
    resources = [aws_kms_key.captures.arn]
  }

  statement {
    sid       = "WriteEncrypted"
    actions   = ["kms:Encrypt", "kms:GenerateDataKey"]
    resources = [var.bucket.replication.kms_key_arn]
  }
}
