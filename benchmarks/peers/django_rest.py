"""Django REST framework: a serializer and a view set, on psycopg 3, served by gunicorn.

One file in place of a project's folders. It has the settings of a production site without sessions
or log-in; each of gunicorn's threads keeps its own connection.
"""

import os
import uuid
from urllib.parse import unquote, urlsplit

import django
from django.conf import settings

at = urlsplit(os.environ["DATABASE_URL"])
settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="for signing nothing",  # noqa: S106
    TIME_ZONE="UTC",
    USE_TZ=True,
    INSTALLED_APPS=["django.contrib.postgres", "rest_framework"],
    MIDDLEWARE=["django.middleware.security.SecurityMiddleware", "django.middleware.common.CommonMiddleware"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": at.hostname,
            "PORT": at.port,
            "NAME": at.path[1:],
            "USER": at.username,
            "PASSWORD": unquote(at.password or ""),
            "CONN_MAX_AGE": None,
        }
    },
    REST_FRAMEWORK={
        "DEFAULT_AUTHENTICATION_CLASSES": [],
        "DEFAULT_PERMISSION_CLASSES": [],
        "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
        "UNAUTHENTICATED_USER": None,
    },
)
django.setup()

from django.contrib.postgres.fields import ArrayField
from django.core.wsgi import get_wsgi_application
from django.db import models
from django.urls import path
from django.utils import timezone
from rest_framework import mixins, serializers, viewsets
from rest_framework.decorators import action
from rest_framework.response import Response
from rest_framework.reverse import reverse


class Task(models.Model):
    class Priority(models.TextChoices):
        LOW = "low"
        MEDIUM = "medium"
        HIGH = "high"

    pk = models.CompositePrimaryKey("user_id", "id")
    user_id = models.TextField()
    id = models.UUIDField(default=uuid.uuid4)
    title = models.CharField(max_length=200)
    description = models.TextField(max_length=2000, null=True)
    completed = models.BooleanField(default=False)
    completed_at = models.DateTimeField(null=True)
    priority = models.CharField(max_length=6, choices=Priority, default=Priority.MEDIUM)
    tags = ArrayField(models.TextField(), default=list)
    due_date = models.DateTimeField(null=True)
    order = models.IntegerField(null=True)
    created_at = models.DateTimeField(default=timezone.now)
    updated_at = models.DateTimeField(default=timezone.now)
    version = models.BigIntegerField(default=1)

    class Meta:
        app_label = "tasks"
        db_table = "tasks"
        managed = False
        ordering = ("-created_at", "-id")


class TaskSerializer(serializers.ModelSerializer):
    url = serializers.SerializerMethodField()

    class Meta:
        model = Task
        fields = (
            *("id", "user_id", "url", "title", "description", "completed", "completed_at", "priority", "tags"),
            *("due_date", "order", "created_at", "updated_at"),
        )
        read_only_fields = ("id", "user_id", "completed_at", "created_at", "updated_at")

    def get_url(self, task):
        return reverse("task", kwargs={"user_id": task.user_id, "id": task.id}, request=self.context["request"])


class TaskViewSet(mixins.ListModelMixin, mixins.CreateModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet):
    serializer_class = TaskSerializer
    lookup_field = "id"

    def get_queryset(self):
        tasks = Task.objects.filter(user_id=self.kwargs["user_id"])
        if self.action == "list":
            return tasks[: int(self.request.query_params.get("limit", 1000))]
        return tasks

    def perform_create(self, serializer):
        completed_at = timezone.now() if serializer.validated_data.get("completed") else None
        serializer.save(user_id=self.kwargs["user_id"], completed_at=completed_at)

    @action(detail=True, methods=["patch"])
    def complete(self, request, **_):  # noqa: ARG002
        task = self.get_object()
        task.completed = not task.completed
        task.updated_at = timezone.now()
        task.completed_at = task.updated_at if task.completed else None
        task.version += 1
        task.save(update_fields=["completed", "completed_at", "updated_at", "version"])
        return Response(self.get_serializer(task).data)


urlpatterns = [
    path("api/<str:user_id>/tasks", TaskViewSet.as_view({"get": "list", "post": "create"})),
    path("api/<str:user_id>/tasks/<uuid:id>", TaskViewSet.as_view({"get": "retrieve"}), name="task"),
    path("api/<str:user_id>/tasks/<uuid:id>/complete", TaskViewSet.as_view({"patch": "complete"})),
]
application = get_wsgi_application()
