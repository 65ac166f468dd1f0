"""An AWS for tests: moto for the control plane, corrected where AWS differs, and a real S3 behind the same door.

In: requests of AWS's SDKs, `--s3 URL` (an S3 that checks what it is sent: LocalStack). Out: answers, and a line of JSON for each call.
Never: reaches AWS; answers what it does not know. Each module opens with what it corrects and where AWS says so.
"""
