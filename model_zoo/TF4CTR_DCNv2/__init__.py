from model_zoo.TF4CTR_DCNv2.TF4CTR_DCNv2 import TF4CTR_DCNv2

__all__ = ["TF4CTR_DCNv2"]
