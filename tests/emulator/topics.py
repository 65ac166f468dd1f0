"""SNS: a mail address must confirm its subscription; moto takes every subscription for confirmed.

SNS API Reference Subscribe: the owner of an endpoint by mail must confirm; ListSubscriptionsByTopic shows `PendingConfirmation` in
place of the ARN until then; Unsubscribe of such a one is refused (it goes with its topic, or after two days). ConfirmSubscription takes
the token out of the mail: here, where there is no mail, the address itself.
"""

from typing import Any

from moto.sns.models import SNSBackend, Subscription
from moto.sns.responses import SNSResponse

from .corrections import answers, corrects, refuse


def is_pending(subscription: Subscription) -> bool:
    return subscription.protocol in ("email", "email-json") and not subscription.__dict__.get("confirmed_by_mail")


@answers(SNSResponse)
def confirm_subscription(request: Any) -> dict[str, Any]:
    topic, address = request._get_param("TopicArn"), request._get_param("Token")
    for subscription in request.backend.subscriptions.values():
        if (subscription.topic_arn, subscription.endpoint) == (topic, address):
            subscription.confirmed_by_mail = True
            return {"SubscriptionArn": subscription.arn}
    raise refuse("InvalidParameter", "Invalid parameter: Token")


@corrects(SNSBackend)
def get_subscription_attributes(original: Any, backend: SNSBackend, arn: str) -> dict[str, Any]:
    attributes = original(backend, arn)
    pending = {"PendingConfirmation": "true", "ConfirmationWasAuthenticated": "false"}
    return attributes | (pending if is_pending(backend.subscriptions[arn]) else {})


@corrects(SNSBackend)
def unsubscribe(original: Any, backend: SNSBackend, subscription_arn: str) -> None:
    subscription = backend.subscriptions.get(subscription_arn)
    if subscription is not None and is_pending(subscription):
        raise refuse("InvalidParameter", "Cannot unsubscribe a subscription that is pending confirmation")
    original(backend, subscription_arn)


def _listed(subscription: Subscription) -> str:
    return "PendingConfirmation" if is_pending(subscription) else subscription.arn


Subscription.subscription_arn = property(_listed)
