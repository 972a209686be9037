"""An S3 store for tests: moto's server in this process, with its checking of signatures on.

moto computes every signature anew with botocore and compares: whoever signs another request than
the one sent gets SignatureDoesNotMatch. It does not look at the time of a signature, and takes the
path as it was sent, where AWS encodes it anew.
"""

import json
import pathlib

import boto3
import requests
from moto.moto_server.threaded_moto_server import ThreadedMotoServer

REGION = "eu-west-1"
READ_EVERYTHING = json.dumps({"Version": "2012-10-17", "Statement": [
    {"Effect": "Allow", "Action": ["s3:GetObject", "s3:ListBucket"], "Resource": "*"}]})
ASSUMED_BY_ANYONE = json.dumps({"Version": "2012-10-17", "Statement": [
    {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}]})


class S3Server:
    """Runs on a free port of 127.0.0.1 from start() to stop()."""

    def __init__(self):
        self._server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()

    def start(self):
        self._server.start()
        self.url = "http://%s:%d" % self._server.get_host_and_port()
        self.reset()
        return self

    def stop(self):
        self.check_signatures(False)
        self._server.stop()

    def reset(self):
        """Forget all buckets and users; signatures are not checked until check_signatures()."""
        self.check_signatures(False)
        requests.post(self.url + "/moto-api/reset", timeout=10).raise_for_status()

    def check_signatures(self, on):
        """On: every request must be signed by somebody who may. Off: objects that are public."""
        count = "0" if on else "inf"
        requests.post(self.url + "/moto-api/reset-auth", data=count, timeout=10).raise_for_status()

    def client(self, service):
        return boto3.client(service, endpoint_url=self.url, region_name=REGION,
                            aws_access_key_id="setup", aws_secret_access_key="setup")

    def upload(self, folder, bucket, prefix, acl="private"):
        """Put the files of `folder` under `prefix`, which ends in '/' or is empty."""
        s3 = self.client("s3")
        if bucket not in [entry["Name"] for entry in s3.list_buckets()["Buckets"]]:
            s3.create_bucket(Bucket=bucket,
                             CreateBucketConfiguration={"LocationConstraint": REGION})
        for path in pathlib.Path(folder).iterdir():
            s3.put_object(Bucket=bucket, Key=prefix + path.name, Body=path.read_bytes(), ACL=acl)

    def user(self, name, policy=READ_EVERYTHING):
        """Environment variables of a new user's keys; without a policy it may do nothing."""
        iam = self.client("iam")
        iam.create_user(UserName=name)
        if policy is not None:
            iam.put_user_policy(UserName=name, PolicyName="policy", PolicyDocument=policy)
        key = iam.create_access_key(UserName=name)["AccessKey"]
        return {"AWS_ACCESS_KEY_ID": key["AccessKeyId"],
                "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}

    def session(self, role):
        """Environment variables of temporary credentials."""
        iam = self.client("iam")
        made = iam.create_role(RoleName=role, AssumeRolePolicyDocument=ASSUMED_BY_ANYONE)
        iam.put_role_policy(RoleName=role, PolicyName="policy", PolicyDocument=READ_EVERYTHING)
        given = self.client("sts").assume_role(RoleArn=made["Role"]["Arn"],
                                               RoleSessionName="test")["Credentials"]
        return {"AWS_ACCESS_KEY_ID": given["AccessKeyId"],
                "AWS_SECRET_ACCESS_KEY": given["SecretAccessKey"],
                "AWS_SESSION_TOKEN": given["SessionToken"]}
