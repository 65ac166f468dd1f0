locals {
  # Spelled, not taken from the resource: policies name it before it is there.
  _bucket_arn = "arn:${local._partition}:s3:::${var.bucket.name}"

  # Instance ids begin with i-: neither manifests nor what others put beside the captures.
  _capture_keys = "${local._bucket_arn}/${var.bucket.key_prefix}i-*"
  _index_keys   = [for folder in ["manifest", "status", "index"] : "${local._bucket_arn}/${folder}/*"]
}

resource "aws_s3_bucket" "captures" {
  #checkov:skip=CKV2_AWS_62: nobody waits for events; the manifests tell what arrived
  bucket              = var.bucket.name
  force_destroy       = var.bucket.force_destroy
  object_lock_enabled = var.bucket.object_lock != null
  tags                = local._tags
}

resource "aws_s3_bucket_public_access_block" "captures" {
  bucket                  = aws_s3_bucket.captures.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "captures" {
  bucket = aws_s3_bucket.captures.id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_versioning" "captures" {
  bucket = aws_s3_bucket.captures.id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "captures" {
  bucket = aws_s3_bucket.captures.id

  rule {
    # One call to KMS for many objects.
    bucket_key_enabled = true

    apply_server_side_encryption_by_default {
      sse_algorithm     = "aws:kms"
      kms_master_key_id = aws_kms_key.captures.arn
    }
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "captures" {
  #checkov:skip=CKV_AWS_300: the rule abandoned-uploads does; its days are a variable
  bucket = aws_s3_bucket.captures.id

  rule {
    id     = "abandoned-uploads"
    status = "Enabled"
    filter {}

    abort_incomplete_multipart_upload {
      days_after_initiation = var.bucket.abort_incomplete_days
    }
  }

  # Each agent writes its status anew every minute; captures and manifests are written once.
  rule {
    id     = "former-statuses"
    status = "Enabled"
    filter {
      prefix = "status/"
    }

    noncurrent_version_expiration {
      noncurrent_days = 7
    }
  }

  dynamic "rule" {
    for_each = var.bucket.transition_days == null ? [] : [var.bucket.transition_days]

    content {
      id     = "tiering"
      status = "Enabled"
      filter {
        # Below 128 KiB the cheaper class is the dearer one.
        object_size_greater_than = 131072
      }

      transition {
        days          = rule.value
        storage_class = "STANDARD_IA"
      }
    }
  }

  dynamic "rule" {
    for_each = var.bucket.expire_days == null ? [] : [var.bucket.expire_days]

    content {
      id     = "expiry"
      status = "Enabled"
      filter {}

      expiration {
        days = rule.value
      }

      # What expired stays readable for a week as an older version.
      noncurrent_version_expiration {
        noncurrent_days = 7
      }
    }
  }

  depends_on = [aws_s3_bucket_versioning.captures]
}

resource "aws_s3_bucket_object_lock_configuration" "captures" {
  count = var.bucket.object_lock == null ? 0 : 1

  bucket = aws_s3_bucket.captures.id

  rule {
    default_retention {
      mode = var.bucket.object_lock.mode
      days = var.bucket.object_lock.days
    }
  }

  depends_on = [aws_s3_bucket_versioning.captures]
}

resource "aws_s3_bucket_logging" "captures" {
  count = var.bucket.access_logs == null ? 0 : 1

  bucket        = aws_s3_bucket.captures.id
  target_bucket = var.bucket.access_logs.bucket
  target_prefix = var.bucket.access_logs.prefix
}

resource "aws_s3_bucket_policy" "captures" {
  bucket = aws_s3_bucket.captures.id
  policy = data.aws_iam_policy_document.bucket.json

  # AWS refuses a policy that names a role it does not know.
  depends_on = [aws_iam_role.agent, aws_s3_bucket_public_access_block.captures]
}

data "aws_iam_policy_document" "bucket" {
  statement {
    sid       = "NothingInTheClear"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = [local._bucket_arn, "${local._bucket_arn}/*"]

    principals {
      type        = "AWS"
      identifiers = ["*"]
    }

    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }

  # S3 User Guide "Enforce conditional writes": parts and the begin of an upload carry no such header and are exempt. One that is
  # broken into can add captures, never change one.
  statement {
    sid       = "CapturesAreWrittenOnce"
    effect    = "Deny"
    actions   = ["s3:PutObject"]
    resources = [local._capture_keys]

    principals {
      type        = "AWS"
      identifiers = [local._role_arn]
    }

    condition {
      test     = "Null"
      variable = "s3:if-none-match"
      values   = ["true"]
    }

    condition {
      test     = "Bool"
      variable = "s3:ObjectCreationOperation"
      values   = ["true"]
    }
  }

  # Whatever another policy may give the agents by mistake.
  statement {
    sid    = "AgentsDeleteNothing"
    effect = "Deny"
    actions = [
      "s3:BypassGovernanceRetention",
      "s3:DeleteBucket*",
      "s3:DeleteObject*",
      "s3:PutBucket*",
      "s3:PutLifecycleConfiguration",
      "s3:PutObjectAcl",
      "s3:PutObjectLegalHold",
      "s3:PutObjectRetention",
    ]
    resources = [local._bucket_arn, "${local._bucket_arn}/*"]

    principals {
      type        = "AWS"
      identifiers = [local._role_arn]
    }
  }
}
